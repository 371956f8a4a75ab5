// Package constraint reads what Compose files demand of a machine, "node.labels.rack == r1", and holds machines against it.
//
// Call Parse for a constraint and ParseAttribute for what a preference spreads over. All values are immutable and pure.
package constraint

import (
	"regexp"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Node is what constraints look at.
type Node struct {
	ID, Hostname string
	Role         string // "server" or "node"
	OS, Arch     string
	Labels       map[string]string
}

// Attribute is one property of a machine.
type Attribute struct {
	key   string
	label string // of node.labels.X and engine.labels.X
}

// String is the attribute as a Compose file has it.
func (a Attribute) String() string { return a.key + a.label }

const (
	nodeLabels   = "node.labels."
	engineLabels = "engine.labels."
)

var labelName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./-]*$`)

// ParseAttribute reads the name of an attribute.
func ParseAttribute(text string) (Attribute, error) {
	text = strings.TrimSpace(text)
	switch text {
	case "node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch":
		return Attribute{key: text}, nil
	}
	for _, prefix := range []string{nodeLabels, engineLabels} {
		if label, ok := strings.CutPrefix(text, prefix); ok && labelName.MatchString(label) {
			return Attribute{key: prefix, label: label}, nil
		}
	}
	return Attribute{}, fault.New(fault.Invalid, "%q is nothing that a machine has", text).
		WithHint("use node.id, node.hostname, node.role, node.labels.NAME, engine.labels.NAME, node.platform.os or node.platform.arch")
}

// Of gives the attribute's value; "" for a label that the machine does not have.
func (a Attribute) Of(n Node) string {
	switch a.key {
	case "node.id":
		return n.ID
	case "node.hostname":
		return n.Hostname
	case "node.role":
		return n.Role
	case "node.platform.os":
		return n.OS
	case "node.platform.arch":
		return Arch(n.Arch)
	}
	return n.Labels[a.label]
}

// Constraint is one demand.
type Constraint struct {
	attribute Attribute
	value     string
	not       bool
}

// String is the constraint as a Compose file has it.
func (c Constraint) String() string {
	if c.not {
		return c.attribute.String() + " != " + c.value
	}
	return c.attribute.String() + " == " + c.value
}

// Parse reads "KEY == VALUE" or "KEY != VALUE".
func Parse(text string) (Constraint, error) {
	c := Constraint{}
	key, value, ok := strings.Cut(text, "==")
	if not := strings.Index(text, "!="); not >= 0 && (!ok || not < len(key)) {
		key, value, ok, c.not = text[:not], text[not+2:], true, true
	}
	value = strings.TrimSpace(value)
	if !ok || value == "" || strings.ContainsAny(value, "=!") {
		return c, fault.New(fault.Invalid, "%q is no constraint", text).WithHint(`write "KEY == VALUE" or "KEY != VALUE"`)
	}
	a, err := ParseAttribute(key)
	if err != nil {
		return c, err
	}
	c.attribute, c.value = a, known(a, value)
	return c, nil
}

// known turns the words of others into ours.
func known(a Attribute, value string) string {
	switch a.key {
	case "node.role":
		switch strings.ToLower(value) {
		case "manager":
			return "server"
		case "worker":
			return "node"
		}
	case "node.platform.arch":
		return Arch(value)
	}
	return value
}

// Holds reports whether the machine meets the constraint. Letters count the same in both cases.
func (c Constraint) Holds(n Node) bool {
	return strings.EqualFold(c.attribute.Of(n), c.value) != c.not
}

// Unsaid reports that the machine has not said what the constraint asks for: until it has, Holds tells nothing. Only the
// architecture is not known from the beginning.
func (c Constraint) Unsaid(n Node) bool {
	return c.attribute.key == "node.platform.arch" && n.Arch == ""
}

// Arch is an architecture in Go's words, whoever named it.
func Arch(name string) string {
	switch strings.ToLower(name) {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64", "arm64/v8":
		return "arm64"
	case "i386", "i686", "x86":
		return "386"
	}
	return strings.ToLower(name)
}
