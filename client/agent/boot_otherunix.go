//go:build unix && !darwin

package agent

import "errors"

func sysctlBootID() (string, error) {
	return "", errors.New("cannot tell on this system when the machine was booted")
}
