package main

import (
	"fmt"
	"testing"
)

func bothWays(t *testing.T, f func(t *testing.T, hashes bool)) {
	for _, hashes := range []bool{false, true} {
		t.Run(fmt.Sprintf("hashes=%v", hashes), func(t *testing.T) { f(t, hashes) })
	}
}

func TestTimestampRollback(t *testing.T) {
	w := start(t)
	w.repo.Publish("timestamp")
	w.refresh(0)
	w.repo.SetVersion("timestamp", 1)
	w.repo.Republish("timestamp")
	w.refresh(1)
	w.lastRequest("timestamp.json")
	w.trusts("root 1", "timestamp 2", "snapshot 1", "targets 1")
}

func TestSnapshotRollback(t *testing.T) {
	bothWays(t, func(t *testing.T, hashes bool) {
		w := start(t)
		w.repo.HashMeta = hashes
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(0)
		w.repo.Published["snapshot"] = nil
		w.repo.SetVersion("snapshot", 1)
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(1)
		w.lastRequest("timestamp.json")
		w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 1")
	})
}

// The timestamp still lists the version that the client has, so it asks no further.
func TestSnapshotRollbackWithoutTimestamp(t *testing.T) {
	w := start(t)
	w.repo.Publish("snapshot", "timestamp")
	w.refresh(0)
	w.repo.SetVersion("snapshot", 1)
	w.repo.Republish("snapshot")
	w.refresh(0)
	w.lastRequest("timestamp.json")
	w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 1")
}

func TestTargetsRollback(t *testing.T) {
	bothWays(t, func(t *testing.T, hashes bool) {
		w := start(t)
		w.repo.HashMeta = hashes
		w.repo.Publish("targets")
		w.repo.Publish(topLevel...)
		w.refresh(0)
		w.repo.Published["targets"] = nil
		w.repo.SetVersion("targets", 1)
		w.repo.Publish(topLevel...)
		w.refresh(1)
		w.trusts("root 1", "timestamp 3", "snapshot 2", "targets 3")
	})
}

func TestSnapshotMayNotDropARole(t *testing.T) {
	w := start(t)
	w.repo.Snapshot.Signed.Meta["other.json"] = w.repo.Snapshot.Signed.Meta["targets.json"]
	w.repo.Publish("snapshot", "timestamp")
	w.refresh(0)
	delete(w.repo.Snapshot.Signed.Meta, "other.json")
	w.repo.Publish("snapshot", "timestamp")
	w.refresh(1)
	w.trusts("root 1", "timestamp 3", "snapshot 2", "targets 1")
}

func TestSnapshotVersionDiffersFromTimestamp(t *testing.T) {
	w := start(t)
	w.repo.SetVersion("snapshot", 2)
	w.repo.SetLatest("snapshot", w.repo.Sign("snapshot"))
	w.refresh(1)
	w.lastRequest("1.snapshot.json")
	w.trusts("root 1", "timestamp 1")
}

// An attacker with an online key raises versions as high as they go; rotating
// the key has to bring clients back.
func TestFastForwardRecovery(t *testing.T) {
	t.Run("timestamp", func(t *testing.T) {
		w := start(t)
		w.repo.SetVersion("timestamp", 99999)
		w.repo.Republish("timestamp")
		w.refresh(0)
		w.repo.SetVersion("timestamp", 1)
		w.repo.Republish("timestamp")
		w.refresh(1)
		w.repo.RotateKeys("timestamp")
		w.repo.Publish("root")
		w.repo.Republish("timestamp")
		w.refresh(0)
		w.trusts("root 2", "timestamp 1", "snapshot 1", "targets 1")
	})
	t.Run("snapshot", func(t *testing.T) {
		w := start(t)
		for range 99 {
			w.repo.Publish("snapshot")
		}
		w.repo.Publish("timestamp")
		w.refresh(0)
		w.repo.RotateKeys("snapshot")
		w.repo.RotateKeys("timestamp")
		w.repo.Published["snapshot"] = nil
		w.repo.SetVersion("snapshot", 1)
		w.repo.Publish("root", "targets", "snapshot", "timestamp")
		w.refresh(0)
		w.trusts("root 2", "timestamp 3", "snapshot 1", "targets 2")
	})
	t.Run("snapshot, its own key only", func(t *testing.T) {
		w := start(t)
		for range 99 {
			w.repo.Publish("snapshot")
		}
		w.repo.Publish("timestamp")
		w.refresh(0)
		w.repo.RotateKeys("snapshot")
		w.repo.Published["snapshot"] = nil
		w.repo.SetVersion("snapshot", 1)
		w.repo.Publish("root", "snapshot", "timestamp")
		w.refresh(0)
		w.trusts("root 2", "timestamp 3", "snapshot 1", "targets 1")
	})
	t.Run("targets", func(t *testing.T) {
		w := start(t)
		for range 99 {
			w.repo.Publish("targets")
		}
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(0)
		w.repo.Published["targets"] = nil
		w.repo.SetVersion("targets", 1)
		w.repo.RotateKeys("snapshot")
		w.repo.Publish("root", "targets", "snapshot", "timestamp")
		w.refresh(0)
		w.trusts("root 2", "timestamp 3", "snapshot 3", "targets 1")
	})
}
