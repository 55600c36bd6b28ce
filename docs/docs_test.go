// Package docs_test keeps the pages true: their links lead somewhere, and the
// commands in them exist.
package docs_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

// pages are all pages of the project, by path from here.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, pattern := range []string{"../*.md", "*.md", "decisions/*.md", "../keys-example/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.Clean(name)] = string(data)
		}
	}
	if len(all) < 8 {
		t.Fatalf("only %d pages were found", len(all))
	}
	return all
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	fence   = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```")
	code    = regexp.MustCompile("`[^`\n]*`")
)

func TestLinks(t *testing.T) {
	all := pages(t)
	for page, text := range all {
		prose := code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, m := range link.FindAllStringSubmatch(prose, -1) {
			if strings.Contains(m[1], ":") {
				continue // another site
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), filepath.FromSlash(file))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
				continue
			}
			if anchor != "" && !anchors(all[target])[anchor] {
				t.Errorf("%s: %s: there is no such heading", page, m[1])
			}
		}
	}
}

// anchors are the names under which GitHub finds the headings of a page.
func anchors(text string) map[string]bool {
	names := make(map[string]bool)
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		names[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])] = true
	}
	return names
}

var namedTest = regexp.MustCompile("`([a-z0-9/-]+): ((?:Test|Fuzz)[A-Za-z0-9]+)`")

// TestNamedTestsExist: a defence that a page says is tested is tested.
func TestNamedTestsExist(t *testing.T) {
	seen := 0
	for page, text := range pages(t) {
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			seen++
			files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(m[1]), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, file := range files {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				found = found || strings.Contains(string(data), "\nfunc "+m[2]+"(")
			}
			if !found {
				t.Errorf("%s: there is no test %s in %s", page, m[2], m[1])
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d named tests were found", seen)
	}
}

// TestCommands asks the real programs for help on each command line in a block
// of shell: an unknown command or flag is an error there.
func TestCommands(t *testing.T) {
	programs := build(t)
	lines := 0
	for page, text := range pages(t) {
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			if block[1] != "sh" && block[1] != "console" {
				continue
			}
			for line := range strings.Lines(strings.ReplaceAll(block[2], "\\\n", " ")) {
				words := split(strings.TrimPrefix(strings.TrimSpace(line), "$ "))
				if len(words) == 0 {
					continue
				}
				bin, ours := programs[words[0]]
				if !ours {
					if strings.HasPrefix(words[0], "patchkeep") {
						t.Errorf("%s: there is no program %s", page, words[0])
					}
					continue
				}
				lines++
				if err := known(t.Context(), bin, words[1:]); err != nil {
					t.Errorf("%s: %s: %v", page, strings.TrimSpace(line), err)
				}
			}
		}
	}
	if lines < 10 {
		t.Errorf("only %d commands were looked at", lines)
	}
}

func known(ctx context.Context, bin string, args []string) error {
	out, err := exec.CommandContext(ctx, bin, append(args, "--help")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	// Asked for help on what it does not know, a group helps with itself.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") && strings.Contains(string(out), "[command]\n") {
		return fmt.Errorf("%q names no command", args)
	}
	return nil
}

// build makes the programs, by name.
func build(t *testing.T) map[string]string {
	t.Helper()
	dirs, err := filepath.Glob("../cmd/patchkeep*")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	programs := make(map[string]string)
	args := []string{"build", "-o", bin + string(filepath.Separator)}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		programs[name] = filepath.Join(bin, name)
		args = append(args, "../cmd/"+name)
	}
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("build programs: %v: %s", err, out)
	}
	return programs
}

// split takes the first command of a line apart as a shell does: quotes, and
// an end at a comment, a pipe, a redirection or the next command.
func split(line string) []string {
	var words []string
	var word strings.Builder
	open, quote := false, rune(0)
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case unicode.IsSpace(r):
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
		case !open && r == '#', strings.ContainsRune("|<>&;", r):
			if open {
				words = append(words, word.String())
			}
			return words
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words
}
