package document

import (
	"errors"
	"strings"
	"testing"
)

type sample struct {
	Format int            `json:"format"`
	Name   string         `json:"name,omitempty"`
	Sub    map[string]any `json:"sub,omitempty"`
	List   []inner        `json:"list,omitempty"`
	One    *inner         `json:"one,omitempty"`
}

type inner struct {
	A int `json:"a"`
}

func TestDecode(t *testing.T) {
	bad := map[string]string{
		"empty":       "",
		"not object":  `[]`,
		"string":      `"x"`,
		"trailing":    `{"format":1} {}`,
		"twice":       `{"format":1,"format":2}`,
		"nested":      `{"sub":{"a":1,"a":2}}`,
		"deep":        `{"sub":` + strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20) + "}",
		"wrong type":  `{"format":"x"}`,
		"not utf8":    "{\"name\":\"\xff\"}",
		"too long":    `{"name":"` + strings.Repeat("x", 300) + `"}`,
		"cut short":   `{"format":1`,
		"close first": `}`,
	}
	for name, in := range bad {
		var s sample
		if _, err := Decode([]byte(in), 256, &s); !errors.Is(err, ErrBad) {
			t.Errorf("%s: Decode(%q) = %v, want ErrBad", name, in, err)
		}
	}
	var s sample
	unknown, err := Decode([]byte(`{"format":1,"Format":9,"later":{"x":[1,2,{"y":null}]},"name":"a<b"}`), 256, &s)
	if err != nil || s.Format != 1 || s.Name != "a<b" || len(unknown) != 2 {
		t.Fatalf("Decode = %+v, %v, %v", s, unknown, err)
	}
	var nested sample
	if _, err := Decode([]byte(`{"list":[{"a":1,"A":9,"later":2},{"A":9}],"one":{"A":9,"a":3}}`), 256, &nested); err != nil ||
		len(nested.List) != 2 || nested.List[0].A != 1 || nested.List[1].A != 0 || nested.One.A != 3 {
		t.Errorf("Decode = %+v, %v; want names to match exactly within", nested, err)
	}
	out, err := Encode(s, unknown)
	if want := `{"Format":9,"format":1,"later":{"x":[1,2,{"y":null}]},"name":"a<b"}`; err != nil || string(out) != want {
		t.Errorf("Encode = %s, %v; want %s", out, err, want)
	}
}
