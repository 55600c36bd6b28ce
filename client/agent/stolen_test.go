//go:build unix

package agent_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// back has the thief's snapshot name an older version of a role.
func (f *fixture) back(role string, version int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repo.Snapshot.Signed.Meta[role+".json"] = &metadata.MetaFiles{Version: version}
	f.repo.Publish(metadata.SNAPSHOT, metadata.TIMESTAMP)
}

// thief signs everything with the keys of the online roles alone.
func (f *fixture) thief(roles ...string) {
	online := append([]*tuftest.Key{}, f.repo.Signers[metadata.SNAPSHOT]...)
	online = append(online, f.repo.Signers[metadata.TIMESTAMP]...)
	for _, role := range roles {
		f.repo.Signers[role] = online
	}
}

// TestStolenOnlineKeys: whoever holds all that an online server holds, the keys
// of snapshot and timestamp and the whole store, has no machine that knows the
// repository install anything that it would not have installed.
func TestStolenOnlineKeys(t *testing.T) {
	// Honest is what the machine has seen before; none of it is offered to it.
	held := func(f *fixture) {
		f.add("hello", "1.1", "hello.tar", program("1.1"))
		f.plan.Entries = nil
		f.publish()
	}
	halted := func(f *fixture) {
		f.add("hello", "1.1", "hello.tar", program("1.1"))
		f.publish()
		f.halts.Halts = []rollout.Halt{halt("h1")}
		f.publish()
	}
	removed := func(f *fixture) {
		f.add("hello", "1.1", "hello.tar", program("1.1"))
		f.publish()
		f.plan.Entries = nil
		f.publish()
	}
	paused := func(f *fixture) {
		f.add("hello", "1.1", "hello.tar", program("1.1"))
		f.publish()
		f.plan.Entries[0].Paused = true
		f.publish()
	}
	tests := []struct {
		name   string
		honest func(*fixture)
		steal  func(*fixture)
	}{
		{"approves a published patch", held, func(f *fixture) {
			f.thief("ring-users")
			f.add("hello", "1.1", "hello.tar", program("1.1"))
			f.publish()
		}},
		{"approves it with the keys of another ring", held, func(f *fixture) {
			f.repo.Signers["ring-users"] = f.repo.Signers["ring-servers"]
			f.add("hello", "1.1", "hello.tar", program("1.1"))
			f.publish()
		}},
		{"publishes a patch of his own, and approves it", held, func(f *fixture) {
			f.thief("ring-users", "product-hello")
			f.add("hello", "1.2", "hello.tar", program("evil"))
			f.publish()
		}},
		{"names himself the ring", held, func(f *fixture) {
			f.thief("targets", "ring-users")
			k, del := f.repo.Signers[metadata.SNAPSHOT][0], f.repo.Targets["targets"].Signed.Delegations
			del.Keys[k.ID] = k.Public
			for i := range del.Roles {
				del.Roles[i].KeyIDs = []string{k.ID}
			}
			f.add("hello", "1.1", "hello.tar", program("1.1"))
			f.publish()
		}},
		{"names himself the root", held, func(f *fixture) {
			f.thief("root", "targets", "ring-users")
			f.repo.Trust("targets", f.repo.Signers[metadata.SNAPSHOT][0])
			f.repo.Publish(metadata.ROOT)
			f.add("hello", "1.1", "hello.tar", program("1.1"))
			f.publish()
		}},
		{"swaps the bytes", held, func(f *fixture) {
			f.repo.Artifacts[layout.PlanPath("users")] = []byte(`{"format":1,"ring":"users","entries":[]}`)
			f.repo.Publish(metadata.SNAPSHOT, metadata.TIMESTAMP)
		}},
		{"replays an old plan that still approves", removed, func(f *fixture) { f.back("ring-users", 1) }},
		{"replays an old plan that is not paused", paused, func(f *fixture) { f.back("ring-users", 1) }},
		{"replays the list without the halt", halted, func(f *fixture) { f.back("halt", 1) }},
		{"replays snapshot and timestamp", removed, func(f *fixture) {
			for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
				f.repo.SetLatest(role, f.repo.Published[role][0])
			}
		}},
		{"drops the halt list", halted, func(f *fixture) { delete(f.repo.Artifacts, layout.HaltsPath) }},
		{"signs an empty halt list", halted, func(f *fixture) {
			f.thief("halt")
			f.halts.Halts = nil
			f.publish()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.honest(f)
			f.enroll()
			f.wantApply("", nil)
			tt.steal(f)
			got, _, err := f.apply(agent.ApplyOptions{})
			if got != "" {
				t.Errorf("it did %q, %v", got, err)
			}
			if _, err := os.Stat(filepath.Join(f.root, "hello")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("something was installed")
			}
		})
	}
}

// TestPlanWithoutProduct: a ring's approval alone installs nothing, whoever else
// signs for the file.
func TestPlanWithoutProduct(t *testing.T) {
	for name, withhold := range map[string]func(f *fixture, path string){
		"nobody vouches for it": func(f *fixture, path string) {
			delete(f.repo.Targets["product-hello"].Signed.Targets, path)
		},
		"another product vouches for it": func(f *fixture, path string) {
			f.repo.Targets["product-base"].Signed.Targets[path] = f.repo.Targets["product-hello"].Signed.Targets[path]
			delete(f.repo.Targets["product-hello"].Signed.Targets, path)
		},
		"the ring vouches for it itself": func(f *fixture, path string) {
			f.repo.Targets["ring-users"].Signed.Targets[path] = f.repo.Targets["product-hello"].Signed.Targets[path]
			delete(f.repo.Targets["product-hello"].Signed.Targets, path)
		},
		"its product vouches for other bytes": func(f *fixture, path string) {
			f.sign("product-hello", path, program("other"), f.described(path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			e := f.add("hello", "1.1", "hello.tar", program("1.1"))
			withhold(f, e.Patch)
			f.publish()
			f.enroll()
			if got, _, err := f.apply(agent.ApplyOptions{}); got != "" {
				t.Errorf("it did %q, %v", got, err)
			}
			it, _ := f.check()
			if it.State != agent.StateRefused {
				t.Errorf("state %s: %s", it.State, it.Why)
			}
			if _, err := os.Stat(filepath.Join(f.root, "hello")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("it was installed")
			}
		})
	}
}

// described is what the product says about a patch.
func (f *fixture) described(path string) *patch.Patch {
	f.Helper()
	p, err := patch.FromCustom(*f.repo.Targets["product-hello"].Signed.Targets[path].Custom)
	f.must(err)
	return p
}
