package inventory

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	want := []Row{
		{"pc-1", "users", "hello", "1.0", "linux-amd64"},
		{"pc-1", "users", "tool", "", "linux-amd64"},
		{"Größe 2", "servers", "hello", "2.0~rc1", ""},
	}
	for name, in := range map[string]string{
		"csv":        "machine,ring,product,version,platform\npc-1,users,hello,1.0,linux-amd64\npc-1,users,tool,,linux-amd64\nGröße 2,servers,hello,2.0~rc1,\n",
		"semicolons": "\xef\xbb\xbfMachine-ID;Owner;Ring;Product;Version;Platform\r\npc-1;Anna, Ben;users;hello;1.0;linux-amd64\r\npc-1;;users;tool;;linux-amd64\r\n\"Größe 2\";;servers;hello;2.0~rc1;\r\n",
		"short rows": "\n platform,version,product,ring,id\nlinux-amd64,1.0,hello,users,pc-1\nlinux-amd64,,tool,users,pc-1\n,2.0~rc1,hello,servers,Größe 2,more\n",
		"json": ` [{"machine":"pc-1","ring":"users","product":"hello","version":"1.0","platform":"linux-amd64","owner":{"x":1}},
			{"machine":"pc-1","ring":"users","product":"tool","platform":"linux-amd64"},{"machine":"Größe 2","ring":"servers","product":"hello","version":"2.0~rc1"}]`,
	} {
		got, err := Read(strings.NewReader(in))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if ids := Machines(want, "users"); !slices.Equal(ids, []string{"pc-1"}) {
		t.Errorf("machines of users: %v", ids)
	}
	if ids := Machines([]Row{{Machine: "b"}, {Machine: "a"}, {Machine: "b"}}, "users"); !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("machines without rings: %v", ids)
	}
}

func TestBadInventories(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "empty",
		" \n ":                         "empty",
		"ring,product\nusers,hello\n":  "line 1: there is no column machine",
		"machine\npc-1\n\n\"\n":        "line",
		"machine,ring\npc-1,users\n,x": "line 3",
		"machine,ring\npc-1,users\npc-1,servers\n": "line 3: machine pc-1 is in ring",
		"machine,ring\npc-1,..\n":                  "line 2: ring",
		"machine\n\"pc\n1\"\n":                     "line 2",
		`{"machine":"pc-1"}`:                       "neither a JSON list",
		`[{"machine":"pc-1"},{"machine":7}]`:       "element 2",
		`[{"machine":"pc-1"},{}]`:                  "element 2",
		`[{"machine":"pc-1"}`:                      "does not end",
	} {
		if rows, err := Read(strings.NewReader(in)); !errors.Is(err, ErrBad) || !strings.Contains(err.Error(), want) {
			t.Errorf("Read(%q) = %v, %v; want ErrBad with %q", in, rows, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("machine;ring\na;b\n"))
	f.Add([]byte(`[{"machine":"a"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rows, err := Read(strings.NewReader(string(data)))
		if err != nil && !errors.Is(err, ErrBad) {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.Machine == "" {
				t.Fatal("a machine without an id")
			}
		}
	})
}
