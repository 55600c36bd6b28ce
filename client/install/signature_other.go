//go:build !windows

package install

import (
	"fmt"
	"os"
)

func checkAuthenticode(*os.File, string, []string) error {
	return fmt.Errorf("only Windows can check Authenticode: %w", ErrUnsupported)
}
