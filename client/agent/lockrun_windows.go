package agent

import "os"

// lockRun is of no use here: handles are not inherited.
func lockRun(string, bool) (*os.File, bool, error) { return nil, true, nil }
