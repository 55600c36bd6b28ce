package fetch

import "github.com/mattn/go-ieproxy"

// systemProxy is what the environment says, or else the settings of the user
// (those of a service: of its account), or else WinHTTP's (netsh winhttp), PAC
// files included.
func systemProxy() proxyFunc {
	if proxy, ok := environmentProxy(); ok {
		return proxy
	}
	ieproxy.ReloadConf()
	return ieproxy.GetProxyFunc()
}
