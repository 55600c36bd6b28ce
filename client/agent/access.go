package agent

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"path/filepath"

	"golang.org/x/net/http/httpproxy"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/choice"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Access is the part of agent.json that says by which way this machine reaches
// its servers, and what it shows them. Files are read anew by each run.
type Access struct {
	TokenFile  string `json:"token_file,omitempty"`  // bearer token
	ClientCert string `json:"client_cert,omitempty"` // PEM, with ClientKey
	ClientKey  string `json:"client_key,omitempty"`
	CAFile     string `json:"ca_file,omitempty"` // PEM; authorities in place of the system's

	Proxy   string `json:"proxy,omitempty"`    // URL; "": as the system says
	NoProxy string `json:"no_proxy,omitempty"` // hosts, domains, networks that are reached without; as in NO_PROXY
	Region  string `json:"region,omitempty"`   // whose mirrors are taken before others
}

// absolute makes the names of files independent of the directory.
func (a *Access) absolute() error {
	for _, name := range []*string{&a.TokenFile, &a.ClientCert, &a.ClientKey, &a.CAFile} {
		if *name == "" {
			continue
		}
		abs, err := filepath.Abs(*name)
		if err != nil {
			return err
		}
		*name = abs
	}
	return nil
}

func (a *Access) check() error {
	for _, name := range []string{a.TokenFile, a.ClientCert, a.ClientKey, a.CAFile} {
		if name != "" && !filepath.IsAbs(name) {
			return fmt.Errorf("%q is not an absolute path", name)
		}
	}
	if (a.ClientCert == "") != (a.ClientKey == "") {
		return errors.New("a client certificate and its key belong together, and one of them is missing")
	}
	if a.Proxy != "" {
		u, err := url.Parse(a.Proxy)
		if err != nil || u.User != nil { // it may hold a password
			return errors.New("the proxy is not a URL like http://proxy.example.org:3128 without a user; one with a user goes into HTTPS_PROXY of the agent's environment")
		}
		if u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" || u.Host == "" {
			return fmt.Errorf("proxy %q is not a URL like http://proxy.example.org:3128", a.Proxy)
		}
	} else if a.NoProxy != "" {
		return errors.New("hosts without a proxy are named, and no proxy is")
	}
	if a.Region != "" {
		if err := layout.CheckName(a.Region); err != nil {
			return fmt.Errorf("region: %w", err)
		}
	}
	return nil
}

// connect completes the configuration of a client.
func (a *Access) connect(cfg client.Config) (client.Config, error) {
	var err error
	cfg.Credentials, err = fetch.CredentialFiles{
		Token: a.TokenFile, Certificate: a.ClientCert, Key: a.ClientKey, Authorities: a.CAFile,
	}.Load()
	if err != nil {
		return cfg, err
	}
	cfg.Region = a.Region
	if a.Proxy != "" {
		proxy := (&httpproxy.Config{HTTPProxy: a.Proxy, HTTPSProxy: a.Proxy, NoProxy: a.NoProxy}).ProxyFunc()
		cfg.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	return cfg, nil
}

// Asked is a server in the order in which it would be asked now.
type Asked struct {
	URL      string  `json:"url"`
	Why      string  `json:"why"` // network, region, open, origin, failing, elsewhere: see package choice
	Enrolled bool    `json:"enrolled"`
	Latency  float64 `json:"latency_ms,omitempty"` // as measured on this network; 0: not yet
	Rate     int64   `json:"rate,omitempty"`       // bytes per second of downloads of late
}

func asked(servers []choice.Server) []Asked {
	list := []Asked{}
	for _, s := range servers {
		list = append(list, Asked{
			URL: s.URL, Why: s.Class.String(), Enrolled: s.Enrolled,
			Latency: math.Round(s.Past.Latency.Seconds()*1e6) / 1e3, Rate: int64(s.Past.Rate),
		})
	}
	return list
}
