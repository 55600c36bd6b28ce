package fetch_test

import "testing"

func pipe(t *testing.T) string {
	t.Skip("pipes are no files here")
	return ""
}
