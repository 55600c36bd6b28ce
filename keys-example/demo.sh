#!/usr/bin/env bash
# The way of a patch, once, for real: a release engineer publishes it, an origin
# and a branch's mirror serve it, and a PC verifies and installs it. Everything
# happens in a scratch directory and on the loopback interface; no root, no
# Docker. Called by `make demo`; PATCH=FILE sends a file of yours instead.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
export PATH="$top/bin:$PATH"
export PATCHKEEP_DEMO=1                              # lets the example keys sign
export PATCHKEEP_KEY_PASSWORD=patchkeep-example      # everybody knows it
export PATCHKEEP_REPO="$scratch/repo" PATCHKEEP_KEYS="$scratch/keys"
state="$scratch/pc/state" root="$scratch/pc/programs"

pids=()
finish() {
	[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi
step=0
say() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"; [ $# -lt 2 ] || printf '%s   %s%s\n' "$dim" "$2" "$plain"; }
shorten() { sed -e "s|$scratch|…|g" -e 's/^/   /'; }
run() { printf '   %s$ %s%s\n' "$dim" "${*/#$scratch\//…/}" "$plain"; "$@" 2>&1 | shorten; }
# refused CODE command…: what must not work.
refused() {
	local want=$1 code=0
	shift
	printf '   %s$ %s%s\n' "$dim" "${*/#$scratch\//…/}" "$plain"
	"$@" >"$scratch/out" 2>&1 || code=$?
	shorten <"$scratch/out"
	if [ "$code" -ne "$want" ]; then
		printf '   %sexpected exit code %d, got %d%s\n' "$red" "$want" "$code" "$plain"
		exit 1
	fi
	printf '   %s→ refused, exit code %d%s\n' "$green" "$code" "$plain"
}
# serve NAME UPSTREAM [FLAG…]: starts a mirror on a free port, and sets url.
serve() {
	local log="$scratch/$1.log"
	patchkeep-mirror serve --upstream "$2" --root "$scratch/root.json" --cache "$scratch/$1" \
		--listen 127.0.0.1:0 --poll 300ms --log-format json "${@:3}" >"$log" 2>&1 &
	pids+=($!)
	for _ in $(seq 100); do
		url=$(grep -o -m 1 'http://127\.0\.0\.1:[0-9]*' "$log" || true)
		[ -z "$url" ] || return 0
		kill -0 "${pids[-1]}" 2>/dev/null || break
		sleep 0.1
	done
	cat "$log" >&2
	exit 1
}
# current VERSION-OF-TIMESTAMP: waits until the mirror at $mirror serves it.
current() {
	for _ in $(seq 100); do
		curl -sf "$mirror/metadata/timestamp.json" | cmp -s - "$PATCHKEEP_REPO/metadata/timestamp.json" && return 0
		sleep 0.1
	done
	echo "the mirror does not catch up" >&2
	exit 1
}
agent() { patchkeep-agent --state "$state" "$@"; }

mkdir -m 700 "$scratch/keys"
install -m 600 "$top"/keys-example/*.key "$top"/keys-example/*.pub "$scratch/keys"

say "A release engineer makes a repository" \
	"Every role gets a key. In production root, targets and the servers' ring get several, held by different people."
run patchkeep init --product hello
patchkeep root export --output "$scratch/root.json"

limit=()
[ -n "${PATCH:-}" ] || limit=(--limit '*=10MB/s')
say "The origin serves it to the internet, and a branch's mirror stands close to its PCs" \
	"Both are the same program; each verifies everything against the pinned root before it serves it."
serve origin "$PATCHKEEP_REPO"
origin=$url
serve mirror "$origin" "${limit[@]}"
mirror=$url
echo "   origin $origin   mirror $mirror"

if [ -n "${PATCH:-}" ]; then
	[ -f "$PATCH" ] || { echo "PATCH=$PATCH is not a file" >&2; exit 64; }
	say "Your file is published"
	run patchkeep patch add "$PATCH" --product hello --version 1.0
	path=$(patchkeep patch list --json | sed -n 's/.*"path": "\(.*\)",$/\1/p')
	current
	say "A PC fetches it through the mirror, verifying each block as it arrives"
	run agent enroll --server "$mirror" --root "$scratch/root.json" --ring users --install-root "$root"
	time run agent download "$path" --output "$scratch/pc/fetched"
	cmp "$PATCH" "$scratch/pc/fetched"
	printf '\n%sThe PC has the very bytes that were signed:%s %s\n' "$green" "$plain" "$(sha256sum <"$scratch/pc/fetched" | cut -c1-64)"
	exit 0
fi

# program VERSION: a small real program, packed as release engineers would.
program() {
	mkdir -p "$scratch/build/bin"
	printf '#!/bin/sh\necho "hello from version %s"\n' "$1" >"$scratch/build/bin/hello"
	chmod 755 "$scratch/build/bin/hello"
	tar -C "$scratch/build" -czf "$scratch/hello-$1.tar.gz" bin
}
publish() {
	program "$1"
	run patchkeep patch add "$scratch/hello-$1.tar.gz" --product hello --version "$1" --platform any \
		--title "Hello $1" --severity "$2" --verify '["{root}/hello/current/bin/hello"]'
}
hello() { printf '   %s$ hello%s\n   %s\n' "$dim" "$plain" "$("$root/hello/current/bin/hello")"; }

say "Version 1.0 is published: signed by the product's key" \
	"No machine installs it yet: the product says what it is, and only a ring says where it may go."
publish 1.0 moderate
current

say "A PC is enrolled in the ring of users" "It keeps the root and the name of its ring; no server can tell it another."
run agent enroll --server "$mirror" --root "$scratch/root.json" --ring users --install-root "$root"
run agent check

say "The ring's approver lets 1.0 go to the users, and the PC installs it"
run patchkeep rollout start hello@1.0 --ring users
current
run agent apply
hello

say "Version 1.1 comes, and the PC updates itself"
publish 1.1 critical
run patchkeep rollout start hello@1.1 --ring users
current
run agent apply
hello

say "Nine o'clock: twenty PCs ask the branch's mirror for the same 30 MB, which it does not have yet" \
	"Its line carries 10 MB/s. The patch crosses it once, and everybody reads along while it comes."
head -c 30000000 /dev/urandom >"$scratch/large.bin"
run patchkeep patch add "$scratch/large.bin" --product hello --version 2.0
path=$(patchkeep patch show hello@2.0 --json | sed -n 's/.*"path": "\(.*\)",$/\1/p' | head -n 1)
object=$(cd "$PATCHKEEP_REPO" && find targets -path "*${path%/*}/*.large.bin")
current
received() { curl -sf "$mirror/metrics" | awk '$1 == "patchkeep_mirror_received_bytes_total" { printf "%d", $2 }'; }
before=$(received)
want=$(sha256sum <"$scratch/large.bin")
for pc in $(seq 20); do
	curl -sf -w '%{stderr}%{time_starttransfer} %{time_total}\n' "$mirror/$object" 2>"$scratch/time.$pc" | sha256sum >"$scratch/sum.$pc" &
	curls+=($!)
done
wait "${curls[@]}"
printf '   first byte after %s s at the latest, all of them done after %s s; over the line: %.1f MB, for %d MB handed out\n' \
	"$(cut -d' ' -f1 "$scratch"/time.* | sort -n | tail -n 1)" "$(cut -d' ' -f2 "$scratch"/time.* | sort -n | tail -n 1)" \
	"$(echo "$before $(received)" | awk '{ print ($2 - $1) / 1e6 }')" 600
for pc in $(seq 20); do
	[ "$(cat "$scratch/sum.$pc")" = "$want" ] || { echo "PC $pc has something else" >&2; exit 1; }
done

say "Someone changes a patch on the server" "One byte of version 1.2, after it was signed. The origin notices, and so would the PC, which tries a few times."
publish 1.2 low >/dev/null
patchkeep rollout start hello@1.2 --ring users >/dev/null
file=$(find "$PATCHKEEP_REPO/targets/patches/hello/1.2" -name '*.tar.gz')
printf 'X' | dd of="$file" bs=1 seek=20 conv=notrunc status=none
current
refused 13 agent apply
printf '   the origin says: %s\n' "$(sed -n 's/.*"error":"\([^"]*sha256[^"]*\)".*/\1/p' "$scratch/origin.log" | head -n 1)"
hello
refused 10 patchkeep verify

say "Someone replays an old state of the repository" \
	"The old timestamp is genuine, but this PC has seen a newer one. Here it asks a server that believes the old one."
cp -r "$PATCHKEEP_REPO" "$scratch/old"
patchkeep renew >/dev/null
current
agent check >/dev/null
serve replayed "$scratch/old"
sed -i "s|$mirror|$url|" "$state/agent.json"
refused 10 agent check
sed -i "s|$url|$mirror|" "$state/agent.json"

say "Anyone on call stops version 1.1, everywhere, with one key"
run patchkeep halt add hello@1.1 --reason "demo: it says hello too loudly" --by "the person on call"
current
run agent why hello@1.1

printf '\n%sThat is Patchkeep.%s Try it with a file of yours: make demo PATCH=path/to/any/file\n' "$bold" "$plain"
