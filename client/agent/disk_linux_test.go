package agent_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/store/storetest/smalldisk"
)

// On a disk without room the files that are kept for deltas go first, the oldest
// of other products before the product's own; only then is there no space.
func TestBasesMakeRoom(t *testing.T) {
	disk := smalldisk.MountSize(t, 40)
	if disk == "" {
		return
	}
	f := newFixture(t)
	f.dir, f.root = filepath.Join(disk, "state"), filepath.Join(disk, "root")
	f.opts.Dir = f.dir
	f.enrollEmpty()
	big := func(c byte, mib int) []byte { return bytes.Repeat([]byte{c}, mib<<20) }
	for _, p := range []string{"hello", "tools"} {
		f.add(p, "1", "x.bin", big(p[0], 6), command("exit 0"))
		f.publish()
		f.wantApply(p+" 1 committed", nil)
	}
	// 40 MiB, 12 of them bases, 16 to stay free.
	f.add("tools", "2", "x.bin", big('T', 14), command("exit 0"))
	f.publish()
	f.wantApply("tools 2 committed", nil)
	if got, want := f.bases(), []string{keptAs("tools", big('T', 14))}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	f.add("base", "1", "x.bin", big('b', 30), command("exit 0"))
	f.publish()
	res := f.wantApply("base 1 offered", fetch.ErrNoSpace)
	if len(f.bases()) != 0 {
		t.Errorf("%v are kept, and there is no room: %+v", f.bases(), res.Done)
	}
	// Somebody makes room: it is tried again by itself.
	f.plan.Entries = f.plan.Entries[:len(f.plan.Entries)-1]
	f.add("base", "2", "x.bin", big('B', 4), command("exit 0"))
	f.publish()
	f.wantApply("base 2 committed", nil)
}

// A disk that is full to the last byte: nothing is begun that cannot be written
// down.
func TestFullDisk(t *testing.T) {
	disk := smalldisk.MountSize(t, 24)
	if disk == "" {
		return
	}
	f := newFixture(t)
	f.dir, f.root = filepath.Join(disk, "state"), filepath.Join(disk, "root")
	f.opts.Dir = f.dir
	ran := filepath.Join(t.TempDir(), "ran")
	f.enrollEmpty()
	f.add("hello", "1", "x.bin", []byte("x"), command("echo >>"+ran), func(p *patch.Patch) {
		p.Detect = &patch.Recipe{Argv: []string{"sh", "-c", "test -e " + ran + " && echo 1"}}
	})
	f.publish()
	filler, err := os.Create(filepath.Join(disk, "filler"))
	f.must(err)
	for chunk := make([]byte, 64<<10); err == nil; {
		_, err = filler.Write(chunk)
	}
	f.must(filler.Close())
	if _, _, err := f.apply(agent.ApplyOptions{}); err == nil {
		t.Error("Apply on a full disk is content")
	} else if _, serr := os.Stat(ran); serr == nil {
		t.Errorf("it was installed, and could not be written down: %v", err)
	}
	f.must(os.Remove(filler.Name()))
	f.wantApply("hello 1 committed", nil)
	if got := f.read(ran); got != "\n" {
		t.Errorf("it ran %d times", len(got))
	}
}
