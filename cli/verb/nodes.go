package verb

import (
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// Nodes are the machines of a cluster, as an answer names them.
type Nodes []*gantryv1.NodeBrief

// Many says whether it is worth telling where something is.
func (n Nodes) Many() bool { return len(n) > 1 }

// Name is what people call a node, with its state if that is not as it should be.
func (n Nodes) Name(id string) string {
	for _, b := range n {
		if b.GetId() != id {
			continue
		}
		if state := b.GetState(); state != "" && state != "ready" {
			return b.GetName() + " (" + state + ")"
		}
		return b.GetName()
	}
	return Dash(Short(id))
}

// Missing is the error for nodes whose part of an answer is missing; nil if there is none. All but the last are printed.
func (s *Session) Missing(failures []*gantryv1.NodeFailure) error {
	var errs []error
	for _, f := range failures {
		errs = append(errs, Failure(f))
	}
	return s.Join(errs)
}

// Failure is one node's part that is missing, as an error.
func Failure(f *gantryv1.NodeFailure) error {
	err := fault.New(fault.Unavailable, "%s", f.GetMessage())
	if f.GetHint() != "" {
		err = err.WithHint("%s", f.GetHint())
	}
	return err
}
