package fetch

import (
	"net/http"
	"net/url"
)

// systemProxy reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
func systemProxy(req *http.Request) (*url.URL, error) { return http.ProxyFromEnvironment(req) }
