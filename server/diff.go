package server

import (
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// diff lists the fields in which two messages of one type differ, in order of their paths.
func diff(old, new proto.Message) []*gantryv1.FieldChange {
	a, b := map[string]string{}, map[string]string{}
	flatten("", old.ProtoReflect(), a)
	flatten("", new.ProtoReflect(), b)
	paths := map[string]bool{}
	for p := range a {
		paths[p] = true
	}
	for p := range b {
		paths[p] = true
	}
	var out []*gantryv1.FieldChange
	for p := range paths {
		if a[p] != b[p] {
			out = append(out, &gantryv1.FieldChange{Path: p, Old: a[p], New: b[p]})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

// flatten maps the path of every set field to its value as text.
func flatten(path string, m protoreflect.Message, out map[string]string) {
	if !m.IsValid() {
		return
	}
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		out[path] = d.AsDuration().String()
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		p := join(path, string(f.Name()))
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				flattenValue(fmt.Sprintf("%s[%s]", p, k.String()), f.MapValue(), v, out)
				return true
			})
		case f.IsList():
			for i := range v.List().Len() {
				flattenValue(fmt.Sprintf("%s[%d]", p, i), f, v.List().Get(i), out)
			}
		default:
			flattenValue(p, f, v, out)
		}
		return true
	})
}

func flattenValue(path string, f protoreflect.FieldDescriptor, v protoreflect.Value, out map[string]string) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		flatten(path, v.Message(), out)
	case protoreflect.EnumKind:
		out[path] = enumText(f, v)
	case protoreflect.BytesKind:
		out[path] = fmt.Sprintf("%d bytes", len(v.Bytes()))
	default:
		s := v.String()
		if !utf8.ValidString(s) {
			s = fmt.Sprintf("%q", s)
		}
		out[path] = s
	}
}

// enumText is an enum value as Compose writes it: PULL_POLICY_NEVER is "never".
func enumText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	d := f.Enum().Values().ByNumber(v.Enum())
	if d == nil {
		return fmt.Sprint(v.Enum())
	}
	name := string(d.Name())
	unspecified := strings.TrimSuffix(string(f.Enum().Values().Get(0).Name()), "UNSPECIFIED")
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, unspecified), "_", "-"))
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
