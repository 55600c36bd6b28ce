package fetch

import (
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

type proxyFunc = func(*http.Request) (*url.URL, error)

// environmentProxy reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY, which go over
// what the system says. ok is false if no proxy is there.
func environmentProxy() (proxy proxyFunc, ok bool) {
	c := httpproxy.FromEnvironment()
	return byConfig(c), c.HTTPProxy != "" || c.HTTPSProxy != ""
}

func byConfig(c *httpproxy.Config) proxyFunc {
	f := c.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return f(r.URL) }
}

// parseScutil reads what `scutil --proxy` prints on macOS: the proxies that are
// switched on, and the hosts that are reached without. Of a PAC file it takes
// no notice.
func parseScutil(out string) *httpproxy.Config {
	values := map[string]string{}
	var without []string
	list := ""
	for line := range strings.Lines(out) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " : ")
		switch {
		case strings.HasPrefix(value, "<array>"):
			list = key
		case strings.TrimSpace(line) == "}":
			list = ""
		case ok && list == "ExceptionsList":
			without = append(without, exception(value))
		case ok && list == "":
			values[key] = value
		}
	}
	at := func(kind string) string {
		if values[kind+"Enable"] != "1" || values[kind+"Proxy"] == "" {
			return ""
		}
		host := values[kind+"Proxy"]
		if port := values[kind+"Port"]; port != "" && port != "0" {
			host = net.JoinHostPort(host, port)
		}
		return "http://" + host
	}
	return &httpproxy.Config{HTTPProxy: at("HTTP"), HTTPSProxy: at("HTTPS"), NoProxy: strings.Join(without, ",")}
}

// exception writes an exception of macOS as NO_PROXY has it: *.local is .local,
// 169.254/16 is 169.254.0.0/16.
func exception(s string) string {
	if domain, ok := strings.CutPrefix(s, "*."); ok {
		return "." + domain
	}
	addr, bits, ok := strings.Cut(s, "/")
	if !ok || strings.Contains(addr, ":") {
		return s
	}
	for strings.Count(addr, ".") < 3 {
		addr += ".0"
	}
	return addr + "/" + bits
}
