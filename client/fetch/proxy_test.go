package fetch

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestParseScutil(t *testing.T) {
	for _, c := range []struct{ name, out, http, https, without string }{
		{"nothing", "<dictionary> {\n}\n", "", "", ""},
		{"no output", "", "", "", ""},
		{"both", `<dictionary> {
  ExceptionsList : <array> {
    0 : *.local
    1 : 169.254/16
    2 : intranet.example
    3 : 2001:db8::/32
  }
  ExcludeSimpleHostnames : 0
  HTTPEnable : 1
  HTTPPort : 3128
  HTTPProxy : proxy.example
  HTTPSEnable : 1
  HTTPSPort : 3129
  HTTPSProxy : 10.1.2.3
}
`, "http://proxy.example:3128", "http://10.1.2.3:3129", ".local,169.254.0.0/16,intranet.example,2001:db8::/32"},
		{"switched off", "<dictionary> {\n  HTTPEnable : 0\n  HTTPPort : 3128\n  HTTPProxy : proxy.example\n}\n", "", "", ""},
		{"a PAC file", "<dictionary> {\n  ProxyAutoConfigEnable : 1\n  ProxyAutoConfigURLString : http://wpad/wpad.dat\n}\n", "", "", ""},
		{"no port", "<dictionary> {\n  HTTPSEnable : 1\n  HTTPSProxy : proxy.example\n}\n", "", "http://proxy.example", ""},
	} {
		if got := parseScutil(c.out); got.HTTPProxy != c.http || got.HTTPSProxy != c.https || got.NoProxy != c.without {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// The environment goes over all; what NO_PROXY names is reached without.
func TestProxyOfTheEnvironment(t *testing.T) {
	var seen []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Host)
		w.Write([]byte("{}"))
	}))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", "")
	t.Setenv("NO_PROXY", "direct.invalid")
	t.Setenv("no_proxy", "")
	f := New(Options{Attempts: 1, BackoffMin: time.Millisecond})
	defer f.Close()
	if _, err := f.Metadata("http://mirror.invalid").FetchMetadata(t.Context(), "1.json", 100); err != nil {
		t.Error(err)
	}
	if _, err := f.Metadata("http://direct.invalid").FetchMetadata(t.Context(), "1.json", 100); err == nil {
		t.Error("what is to be reached without the proxy went through it")
	}
	if got := strings.Join(seen, " "); got != "mirror.invalid" {
		t.Errorf("the proxy saw %q", got)
	}
}
