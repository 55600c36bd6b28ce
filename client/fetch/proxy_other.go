//go:build !windows && !darwin

package fetch

// systemProxy is what the environment says.
func systemProxy() proxyFunc {
	proxy, _ := environmentProxy()
	return proxy
}
