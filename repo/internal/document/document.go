// Package document reads and writes the JSON documents of a repository:
// bounded, unambiguous, and keeping the fields that it does not know, so that
// an older program never loses what a newer one wrote.
package document

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"unicode/utf8"
)

// ErrBad is wrapped by every error about a document that is refused.
var ErrBad = errors.New("bad document")

// maxDepth is how deep objects and arrays may nest.
const maxDepth = 16

// Unknown holds the fields of a document that this version does not know.
type Unknown map[string]json.RawMessage

// Decode reads one JSON object of at most limit bytes into v, a pointer to a
// struct, and returns the top-level fields that v has no place for. Field names
// match exactly, also in structs within, whose unknown fields are dropped; an
// object may not name a field twice, nothing may follow.
func Decode(data []byte, limit int, v any) (Unknown, error) {
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrBad, len(data), limit)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrBad)
	}
	if err := check(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	known, err := exact(data, reflect.TypeOf(v).Elem(), true)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	if err := json.Unmarshal(known, v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	for name := range fields(reflect.TypeOf(v).Elem()) {
		delete(all, name)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}

// Encode writes v, a struct, with the unknown fields it was read with. The
// result is compact, with sorted names.
func Encode(v any, unknown Unknown) ([]byte, error) {
	data, err := marshal(v)
	if err != nil || len(unknown) == 0 {
		return data, err
	}
	all := map[string]json.RawMessage(maps.Clone(unknown))
	var known map[string]json.RawMessage
	if err := json.Unmarshal(data, &known); err != nil {
		return nil, err
	}
	maps.Copy(all, known)
	return marshal(all)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// exact returns raw with the fields only that t has, since encoding/json would
// take a field by a name that differs in case. A type that reads itself gets
// what there is, but for the outermost one.
func exact(raw json.RawMessage, t reflect.Type, outermost bool) (json.RawMessage, error) {
	if t.Kind() == reflect.Pointer {
		return exact(raw, t.Elem(), outermost)
	}
	if !outermost && readsItself(t) || string(raw) == "null" {
		return raw, nil
	}
	switch t.Kind() {
	case reflect.Struct:
		var all map[string]json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil {
			return nil, err
		}
		known := make(map[string]json.RawMessage)
		for name, ft := range fields(t) {
			value, ok := all[name]
			if !ok {
				continue
			}
			var err error
			if known[name], err = exact(value, ft, false); err != nil {
				return nil, err
			}
		}
		return json.Marshal(known)
	case reflect.Slice:
		if elem := t.Elem().Kind(); elem != reflect.Struct && elem != reflect.Pointer {
			return raw, nil
		}
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, err
		}
		for i := range list {
			var err error
			if list[i], err = exact(list[i], t.Elem(), false); err != nil {
				return nil, err
			}
		}
		return json.Marshal(list)
	}
	return raw, nil
}

func readsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func fields(t reflect.Type) map[string]reflect.Type {
	names := make(map[string]reflect.Type)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names[name] = t.Field(i).Type
		}
	}
	return names
}

// check walks the tokens: one object, no name twice, not too deep.
func check(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	type frame struct {
		names map[string]bool // nil in an array
		key   bool            // the next string is a name
	}
	var stack []frame
	for first := true; ; first = false {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if first && tok != json.Delim('{') {
			return errors.New("not a JSON object")
		}
		if !first && len(stack) == 0 {
			return errors.New("more data after the end")
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
			f := frame{}
			if tok == json.Delim('{') {
				f = frame{names: make(map[string]bool), key: true}
			}
			stack = append(stack, f)
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		default:
			top := &stack[len(stack)-1]
			if top.names != nil && top.key {
				name, _ := tok.(string)
				if top.names[name] {
					return fmt.Errorf("field %q stands twice", name)
				}
				top.names[name] = true
				top.key = false
				continue
			}
		}
		if len(stack) > 0 && stack[len(stack)-1].names != nil {
			stack[len(stack)-1].key = true
		}
	}
}
