//go:build unix

package install

import (
	"os"

	"golang.org/x/sys/unix"
)

func openForReading(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// stamp changes with whatever is done to a file. Unlike the time of the last
// write, nobody can set that of the last change back.
type stamp struct{ dev, ino, size, written, changed int64 }

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return stamp{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, err
}

// touch takes over the time of the last change, as of mode or name.
func (s *stamp) touch(from stamp) { s.changed = from.changed }
