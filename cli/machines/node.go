// Package machines is the verbs for the cluster and its machines: cluster and node.
//
// Cluster and Node make the commands. They call the daemon and print; package cli adds them to the tree.
package machines

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// verbs gives the verbs of this package what all share.
type verbs struct{ *verb.Session }

// Node is `gantry node`.
func Node(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return verb.Group("node", "The machines of the cluster", s.nodeLs(), s.nodeShow(), s.nodeAdd(), s.nodeLabel(),
		s.availability("drain", "Move all instances off a node and place none there", "drain"),
		s.availability("activate", "Let a node have instances again", "active"),
		s.nodePromote(), s.nodeDemote(), s.nodeRm())
}

func (s verbs) nodeLs() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List nodes", Aliases: []string{"list"}, Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Nodes.List, &gantryv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetNodes(), func() error { return s.printNodes(got.GetNodes(), quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return s.OutputFlag(cmd, "table")
}

func (s verbs) printNodes(nodes []*gantryv1.NodeView, quiet bool) error {
	tab := table.New("NAME", "ID", "ROLE", "STATE", "ADDRESS", "INSTANCES", "LABELS", "VERSION")
	for _, v := range nodes {
		n := v.GetNode()
		if quiet {
			s.Put("%s", n.GetMeta().GetKey())
			continue
		}
		tab.Row(verb.Line("%s", n.GetName()), n.GetMeta().GetKey(), roleOf(v), stateOf(v), verb.Dash(n.GetAddress()),
			fmt.Sprintf("%d/%d", v.GetRunning(), v.GetInstances()), verb.Dash(verb.Line("%s", labelsOf(n))), verb.Dash(v.GetStatus().GetVersion()))
	}
	if quiet {
		return nil
	}
	return tab.Write(s.Out)
}

func roleOf(v *gantryv1.NodeView) string {
	if v.GetLeader() {
		return "server, leader"
	}
	return v.GetNode().GetRole()
}

func stateOf(v *gantryv1.NodeView) string {
	state := v.GetStatus().GetState()
	if state == "" {
		state = "unknown"
	}
	if v.GetNode().GetAvailability() == "drain" {
		state += ", drained"
	}
	return state
}

func labelsOf(n *gantryv1.Node) string {
	out := make([]string, 0, len(n.GetMeta().GetLabels()))
	for k, v := range n.GetMeta().GetLabels() {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (s verbs) nodeShow() *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "show NODE", Short: "Print all that is known of a node", Aliases: []string{"inspect"}, Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			v, err := client.Call(cmd.Context(), c.Nodes.Get, &gantryv1.NodeRequest{Node: args[0]})
			if err != nil {
				return err
			}
			if s.Output == "json" {
				return verb.One(s.Session, v)
			}
			s.printNode(v)
			return nil
		},
	}, "table")
}

func (s verbs) printNode(v *gantryv1.NodeView) {
	n, st := v.GetNode(), v.GetStatus()
	for _, row := range [][2]string{
		{"Name", n.GetName()}, {"ID", n.GetMeta().GetKey()}, {"Role", roleOf(v)}, {"State", stateOf(v)},
		{"Last heard", verb.Ago(st.GetLastSeen())}, {"Address", n.GetAddress()}, {"API", n.GetApiAddress()},
		{"Instances", fmt.Sprintf("%d, %d of them running", v.GetInstances(), v.GetRunning())},
		{"Their range", n.GetSubnet()}, {"Labels", labelsOf(n)}, {"CPUs", fmt.Sprintf("%g", float64(st.GetNanoCpus())/1e9)},
		{"Memory", human.Memory(uint64(st.GetMemory()))}, {"Architecture", st.GetArchitecture()}, {"Kernel", st.GetKernel()},
		{"Version", st.GetVersion()}, {"Certificate ends", momentOf(st.GetCertificateEnd())}, {"Joined", verb.Ago(n.GetMeta().GetCreatedAt())},
	} {
		s.Put("%-18s%s", row[0], verb.Dash(verb.Line("%s", row[1])))
	}
}

// moment is a time that may be unset.
type moment interface{ AsTime() time.Time }

func momentOf(t moment) string {
	if at := t.AsTime(); at.Unix() > 0 {
		return at.UTC().Format(time.RFC3339)
	}
	return ""
}

func (s verbs) nodeLabel() *cobra.Command {
	return &cobra.Command{
		Use: "label NODE KEY=VALUE...", Short: "Set labels of a node; KEY= removes one", Args: verb.Between(2, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &gantryv1.LabelNodeRequest{Node: args[0], Labels: map[string]string{}}
			for _, a := range args[1:] {
				k, v, ok := strings.Cut(a, "=")
				if !ok || k == "" {
					return verb.Usage(cmd, "%q is not KEY=VALUE", a)
				}
				req.Labels[k] = v
			}
			return changeNodes(cmd.Context(), s, args[:1], func(ctx context.Context, c *client.Client, _ string) (*gantryv1.NodeView, error) {
				return client.Call(ctx, c.Nodes.Label, req)
			})
		},
	}
}

// changeNodes does the same to each node and says what each is then.
func changeNodes(ctx context.Context, s verbs, names []string, do func(context.Context, *client.Client, string) (*gantryv1.NodeView, error)) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	return s.ForEach(names, func(name string) error {
		v, err := do(ctx, c, name)
		if err == nil {
			s.Say("node %s: %s, %s %s", verb.Line("%s", v.GetNode().GetName()), v.GetNode().GetRole(), stateOf(v), verb.Line("%s", labelsOf(v.GetNode())))
		}
		return err
	})
}

func (s verbs) availability(use, short, value string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NODE...", Short: short, Args: verb.Between(1, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeNodes(cmd.Context(), s, args, func(ctx context.Context, c *client.Client, name string) (*gantryv1.NodeView, error) {
				v, err := client.Call(ctx, c.Nodes.SetAvailability, &gantryv1.SetAvailabilityRequest{Node: name, Availability: value})
				if value == "drain" {
					s.tellPinned(v)
				}
				return v, err
			})
		},
	}
}

// tellPinned names what a drained node keeps.
func (s verbs) tellPinned(v *gantryv1.NodeView) {
	for _, p := range v.GetPinned() {
		why := "its volume " + p.GetVolume() + " is on this node"
		if p.GetVolume() == "" {
			why = "it was started by gantry run, which starts it nowhere else"
		}
		s.Warn("%s stays: %s", p.GetInstance(), why)
	}
}

func (s verbs) nodePromote() *cobra.Command {
	return s.roleCommand("promote", "Make nodes servers, which hold the cluster's state", "has its vote",
		func(c *client.Client) changeRole { return c.Nodes.Promote },
		func(m *gantryv1.MemberStatus) bool { return m != nil && !m.GetLearner() })
}

func (s verbs) nodeDemote() *cobra.Command {
	return s.roleCommand("demote", "Make servers plain nodes", "is a server no more",
		func(c *client.Client) changeRole { return c.Nodes.Demote },
		func(m *gantryv1.MemberStatus) bool { return m == nil })
}

// roleCommand changes the role of nodes, one after the other: each is waited for, since the next depends on its vote.
func (s verbs) roleCommand(use, short, reached string, pick func(*client.Client) changeRole, there func(*gantryv1.MemberStatus) bool) *cobra.Command {
	var timeout string
	cmd := &cobra.Command{
		Use: use + " NODE...", Short: short, Args: verb.Between(1, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := verb.Timeout(timeout)
			if err != nil {
				return err
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return s.ForEach(args, func(name string) error {
				var v *gantryv1.NodeView
				err := handedOver(ctx, func() (err error) {
					v, err = client.Call(ctx, pick(c), &gantryv1.NodeRequest{Node: name})
					return err
				})
				if err == nil {
					err = awaitMember(ctx, c, v.GetNode().GetMeta().GetKey(), limit, there)
				}
				if err == nil {
					s.Say("node %s %s", verb.Line("%s", name), reached)
				}
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&timeout, "timeout", "t", "60s", "how long to wait for it")
	return cmd
}

// awaitMember waits until the node's member of the state is as wanted.
func awaitMember(ctx context.Context, c *client.Client, node string, limit time.Duration, there func(*gantryv1.MemberStatus) bool) error {
	deadline := time.Now().Add(limit)
	for {
		st, err := client.Call(ctx, c.Cluster.Status, &gantryv1.ClusterStatusRequest{})
		if err == nil {
			i := slices.IndexFunc(st.GetMembers(), func(m *gantryv1.MemberStatus) bool { return m.GetNode() == node })
			var m *gantryv1.MemberStatus
			if i >= 0 {
				m = st.GetMembers()[i]
			}
			if there(m) {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "node %s has been told and is not there yet after %s", node, limit).WithHint("gantry cluster status")
		}
		select {
		case <-time.After(handOverWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s verbs) nodeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NODE...", Short: "Remove nodes from the cluster", Args: verb.Between(1, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			return s.ForEach(args, func(name string) error {
				return handedOver(cmd.Context(), func() error {
					_, err := client.Call(cmd.Context(), c.Nodes.Remove, &gantryv1.RemoveNodeRequest{Node: name, Force: force})
					if err == nil {
						s.Say("node %s is removed", verb.Line("%s", name))
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also a node that is up and has instances, or that holds volumes")
	return cmd
}

const (
	handOverTries = 20
	handOverWait  = 500 * time.Millisecond
)

// handedOver repeats what a leader refuses because it has just handed over to do it.
func handedOver(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		if !fault.Is(err, fault.Unavailable) || try == handOverTries {
			return err
		}
		select {
		case <-time.After(handOverWait):
		case <-ctx.Done():
			return err
		}
	}
}

// changeRole promotes or demotes one node.
type changeRole func(context.Context, *connect.Request[gantryv1.NodeRequest]) (*connect.Response[gantryv1.NodeView], error)
