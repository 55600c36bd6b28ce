package fetch

import (
	"context"
	"net/http"
	"net/url"
	"os/exec"
	"sync"
	"time"
)

// systemProxy is what the environment says, or else the settings of the network
// that the machine is on, as they are when a proxy is first asked for.
func systemProxy() proxyFunc {
	if proxy, ok := environmentProxy(); ok {
		return proxy
	}
	settings := sync.OnceValue(func() proxyFunc {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "/usr/sbin/scutil", "--proxy").Output()
		if err != nil {
			return nil
		}
		return byConfig(parseScutil(string(out)))
	})
	return func(r *http.Request) (*url.URL, error) {
		if proxy := settings(); proxy != nil {
			return proxy(r)
		}
		return nil, nil
	}
}
