package mirrors_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo/mirrors"
)

func TestCanonicalURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://Mirror.Example.ORG/":         "https://mirror.example.org",
		"HTTPS://h:443":                       "https://h",
		"http://h:80/a/b//":                   "http://h/a/b",
		"http://h:8080":                       "http://h:8080",
		"https://10.1.2.3:8443/x%20y":         "https://10.1.2.3:8443/x%20y",
		"https://[2001:DB8::1]":               "https://[2001:db8::1]",
		"https://[::ffff:10.0.0.1]:80":        "https://10.0.0.1:80",
		"http://127.0.0.1:8080":               "http://127.0.0.1:8080",
		"http://localhost":                    "http://localhost",
		"https://host.example.":               "https://host.example",
		"https://a_b.example":                 "https://a_b.example",
		"":                                    "",
		"mirror.example.org":                  "",
		"ftp://h":                             "",
		"file:///etc/passwd":                  "",
		"https://":                            "",
		"https:///x":                          "",
		"https:h":                             "",
		"https://user@h":                      "",
		"https://user:secret@h":               "",
		"https://h?x":                         "",
		"https://h?":                          "",
		"https://h#x":                         "",
		"https://h#":                          "",
		"https://h/../x":                      "",
		"https://h/%2e%2e/x":                  "",
		"https://h/a//b":                      "",
		"https://h/a b":                       "",
		"https://h/\n":                        "",
		"https://h\\x":                        "",
		"https://hé":                          "",
		"https://h:":                          "",
		"https://h:0":                         "",
		"https://h:080":                       "",
		"https://h:99999":                     "",
		"https://-h":                          "",
		"https://a..b":                        "",
		"https://2130706433":                  "",
		"https://0x7f000001":                  "",
		"https://127.1":                       "",
		"https://0177.0.0.1":                  "",
		"https://0.0.0.0":                     "",
		"https://169.254.169.254":             "",
		"https://[fe80::1%25eth0]":            "",
		"https://[fe80::1]":                   "",
		"https://[ff02::1]":                   "",
		"https://224.0.0.1":                   "",
		"https://255.255.255.255":             "",
		"https://[::]":                        "",
		"https://[::ffff:169.254.169.254]":    "",
		"https://" + strings.Repeat("h", 600): "",
	} {
		got, err := mirrors.CanonicalURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error tells the password: %v", in, err)
		}
	}
}

func TestListsAreChecked(t *testing.T) {
	many := func(n int, f string) string {
		var s []string
		for i := range n {
			s = append(s, fmt.Sprintf(f, i))
		}
		return strings.Join(s, ",")
	}
	for _, c := range []struct{ name, list, want string }{
		{"empty", `{"format":1,"mirrors":[]}`, ""},
		{"all fields", `{"format":1,"mirrors":[{"url":"https://h","networks":["10.0.0.0/8","::/0"],"region":"eu","weight":3,"origin":true}]}`, ""},
		{"a thousand", `{"format":1,"mirrors":[` + many(1000, `{"url":"https://h%d"}`) + `]}`, ""},
		{"ten thousand", `{"format":1,"mirrors":[` + many(10000, `{"url":"https://h%d"}`) + `]}`, "at most 1000"},
		{"too large", `{"format":1,"mirrors":[],"x":"` + strings.Repeat("x", mirrors.MaxSize) + `"}`, "at most"},
		{"many networks", `{"format":1,"mirrors":[{"url":"https://h","networks":[` + many(65, `"10.0.%d.0/24"`) + `]}]}`, "at most 64"},
		{"twice", `{"format":1,"mirrors":[{"url":"https://h"},{"url":"https://h"}]}`, "stands twice"},
		{"not canonical", `{"format":1,"mirrors":[{"url":"https://H/"}]}`, "must be written"},
		{"a user", `{"format":1,"mirrors":[{"url":"https://u:p@h"}]}`, "without a user"},
		{"no URL", `{"format":1,"mirrors":[{"region":"eu"}]}`, "is not like"},
		{"newer", `{"format":2,"mirrors":[]}`, "format 2"},
		{"bits beyond", `{"format":1,"mirrors":[{"url":"https://h","networks":["10.1.2.3/8"]}]}`, "10.0.0.0/8 meant"},
		{"an address", `{"format":1,"mirrors":[{"url":"https://h","networks":["10.1.2.3"]}]}`, "no '/'"},
		{"no network", `{"format":1,"mirrors":[{"url":"https://h","networks":[""]}]}`, "is empty"},
		{"mapped", `{"format":1,"mirrors":[{"url":"https://h","networks":["::ffff:10.0.0.0/104"]}]}`, "as such"},
		{"network twice", `{"format":1,"mirrors":[{"url":"https://h","networks":["10.0.0.0/8","10.0.0.0/8"]}]}`, "stands twice"},
		{"region", `{"format":1,"mirrors":[{"url":"https://h","region":"a b"}]}`, "region"},
		{"weight", `{"format":1,"mirrors":[{"url":"https://h","weight":1001}]}`, "weight"},
		{"negative", `{"format":1,"mirrors":[{"url":"https://h","weight":-1}]}`, "weight"},
	} {
		_, err := mirrors.Parse([]byte(c.list))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.Is(err, mirrors.ErrBad) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// What a newer program wrote is still there after this one added a mirror.
func TestUnknownFieldsAreKept(t *testing.T) {
	l, err := mirrors.Parse([]byte(`{"format":1,"note":"x","mirrors":[{"url":"https://h","cost":7}]}`))
	if err != nil {
		t.Fatal(err)
	}
	l.Mirrors = append(l.Mirrors, mirrors.Mirror{URL: "https://i", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	data, err := l.Encode()
	want := `{"format":1,"mirrors":[{"cost":7,"url":"https://h"},{"url":"https://i","networks":["10.0.0.0/8"]}],"note":"x"}`
	if err != nil || string(data) != want {
		t.Errorf("%s, %v; want %s", data, err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"mirrors":[{"url":"https://h","networks":["10.0.0.0/8"],"region":"eu","weight":3,"origin":true}]}`))
	f.Add([]byte(`{"format":1,"mirrors":[{"url":"http://[2001:db8::1]:81/a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := mirrors.Parse(data)
		if err != nil {
			return
		}
		out, err := l.Encode()
		if err != nil {
			t.Fatalf("%q is read and not written: %v", data, err)
		}
		if _, err := mirrors.Parse(out); err != nil {
			t.Fatalf("%q is written and not read: %v", out, err)
		}
	})
}
