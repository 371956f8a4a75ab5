package machines

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// Cluster is `gantry cluster`.
func Cluster(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return verb.Group("cluster", "The cluster as a whole", s.status(), s.token(), s.configure(), s.rotateCA(), s.backup(), s.restore(), s.recover())
}

// exitFindings is the exit code of `cluster status` when something is wrong.
const exitFindings = 2

func (s verbs) status() *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "status", Short: "Say how the cluster is, what is wrong and what to do; exit 2 if something is", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			st, err := client.Call(cmd.Context(), c.Cluster.Status, &gantryv1.ClusterStatusRequest{})
			if err != nil {
				return err
			}
			if s.Output == "json" {
				err = verb.One(s.Session, st)
			} else {
				err = s.printStatus(st)
			}
			if err == nil && len(st.GetFindings()) > 0 {
				return &verb.Exit{Code: exitFindings}
			}
			return err
		},
	}, "table")
}

func (s verbs) printStatus(st *gantryv1.ClusterStatusResponse) error {
	s.Put("cluster %s: %d of %s ready, revision %d", st.GetId(), st.GetNodesReady(), verb.Count(int(st.GetNodes()), "node"), st.GetRevision())
	tab := table.New("SERVER", "STATE", "MEMBER", "PEERS REACH IT AT", "VERSION")
	for _, m := range st.GetMembers() {
		state := "follower"
		switch {
		case m.GetNode() != "" && m.GetNode() == st.GetLeader():
			state = "leader"
		case m.GetLearner():
			state = "catching up"
		case !m.GetReachable():
			state = "does not answer"
		}
		tab.Row(verb.Dash(verb.Line("%s", m.GetName())), state, m.GetMember(), verb.Dash(m.GetPeerUrl()), verb.Dash(m.GetVersion()))
	}
	if err := tab.Write(s.Out); err != nil {
		return err
	}
	for _, f := range st.GetFindings() {
		s.Put("%s: %s", f.GetSeverity(), verb.Line("%s", f.GetMessage()))
		s.Put("  hint: %s", verb.Line("%s", f.GetHint()))
	}
	if len(st.GetFindings()) == 0 {
		s.Put("nothing is wrong")
	}
	return nil
}

func (s verbs) token() *cobra.Command {
	return verb.Group("token", "Tokens that let machines join", s.tokenCreate(), s.tokenRotate(), s.tokenLs(), s.tokenRm())
}

func (s verbs) tokenCreate() *cobra.Command {
	return s.makesToken(&cobra.Command{
		Use: "create", Short: "Make a token and print the command for the joining machine", Args: verb.Between(0, 0),
	}, nil)
}

func (s verbs) tokenRotate() *cobra.Command {
	return s.makesToken(&cobra.Command{
		Use: "rotate", Short: "Revoke all tokens of a role, make a new one and print the command with it", Args: verb.Between(0, 0),
	}, s.revokeAll)
}

// makesToken adds to a command the flags of a token, and what makes and prints it; before that it does what comes first, if
// anything.
func (s verbs) makesToken(cmd *cobra.Command, first func(ctx context.Context, c *client.Client, role string) error) *cobra.Command {
	var role, life string
	var quiet bool
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := human.ParseDuration(life)
		if err != nil {
			return err
		}
		if role != "node" && role != "server" {
			return fault.New(fault.Invalid, "there is no role %q", role).WithHint("--role node or --role server")
		}
		c, err := s.Client()
		if err != nil {
			return err
		}
		if first != nil {
			if err := first(cmd.Context(), c, role); err != nil {
				return err
			}
		}
		t, err := client.Call(cmd.Context(), c.Cluster.CreateToken, &gantryv1.CreateTokenRequest{Role: role, Life: durationpb.New(d)})
		switch {
		case err != nil:
			return err
		case s.Output == "json":
			return verb.One(s.Session, t)
		case quiet:
			s.Put("%s", t.GetToken())
		default:
			s.Put("%s", joinCommand(t, role))
			s.Say("run this as root on the machine that is to join; it is good until %s", t.GetExpiresAt().AsTime().Local().Format(time.DateTime))
		}
		return nil
	}
	cmd.Flags().StringVar(&role, "role", "node", "what the machine becomes: node, or server, which also holds the cluster's state")
	cmd.Flags().StringVar(&life, "life", "24h", "how long the token is good")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token only")
	return s.OutputFlag(cmd, "table")
}

// joinCommand is what the joining machine runs.
func joinCommand(t *gantryv1.CreateTokenResponse, role string) string {
	line := fmt.Sprintf("gantry join %s --token %s", t.GetAddress(), t.GetToken())
	if role == "server" {
		line += " --server"
	}
	return line
}

// revokeAll revokes the tokens of a role.
func (s verbs) revokeAll(ctx context.Context, c *client.Client, role string) error {
	got, err := client.Call(ctx, c.Cluster.ListTokens, &gantryv1.ListTokensRequest{})
	if err != nil {
		return err
	}
	revoked := 0
	for _, t := range got.GetTokens() {
		if t.GetRole() != role {
			continue
		}
		_, err := client.Call(ctx, c.Cluster.RevokeToken, &gantryv1.RevokeTokenRequest{Id: t.GetMeta().GetKey()})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return fault.Wrap(fault.KindOf(err), err, "token %s is good still, and no new one was made", t.GetMeta().GetKey()).WithHint("try again")
		}
		revoked++
	}
	s.Say("revoked %s", verb.Count(revoked, role+" token"))
	return nil
}

func (s verbs) tokenLs() *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "ls", Short: "List tokens, without their secrets", Aliases: []string{"list"}, Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Cluster.ListTokens, &gantryv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetTokens(), func() error {
				tab := table.New("ID", "ROLE", "MADE", "EXPIRES")
				for _, t := range got.GetTokens() {
					tab.Row(t.GetMeta().GetKey(), t.GetRole(), verb.Ago(t.GetMeta().GetCreatedAt()), momentOf(t.GetExpiresAt()))
				}
				return tab.Write(s.Out)
			})
		},
	}, "table")
}

func (s verbs) tokenRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm ID...", Short: "Revoke tokens", Aliases: []string{"revoke"}, Args: verb.Between(1, 100),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			return s.ForEach(args, func(id string) error {
				_, err := client.Call(cmd.Context(), c.Cluster.RevokeToken, &gantryv1.RevokeTokenRequest{Id: id})
				return err
			})
		},
	}
}

func (s verbs) configure() *cobra.Command {
	var life, suspect, down string
	var copies int32
	cmd := &cobra.Command{
		Use: "configure", Short: "Set what holds for all machines", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("image-copies") && copies < 1 {
				return verb.Usage(cmd, "--image-copies is 1 or more")
			}
			req := &gantryv1.ConfigureClusterRequest{ImageCopies: copies}
			for _, f := range []struct {
				text string
				to   **durationpb.Duration
			}{{life, &req.CertificateLife}, {suspect, &req.SuspectAfter}, {down, &req.DownAfter}} {
				if f.text == "" {
					continue
				}
				d, err := human.ParseDuration(f.text)
				if err != nil {
					return err
				}
				*f.to = durationpb.New(d)
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			_, err = client.Call(cmd.Context(), c.Cluster.Configure, req)
			return err
		},
	}
	cmd.Flags().StringVar(&life, "certificate-life", "", "how long machines' certificates are good; those that are there are renewed within a minute (default 30 days)")
	cmd.Flags().StringVar(&suspect, "suspect-after", "", "silence after which a node gets no new instances, 500ms or more (default 2s)")
	cmd.Flags().StringVar(&down, "down-after", "", "silence after which a node's instances are replaced elsewhere, longer than --suspect-after (default 5s)")
	cmd.Flags().Int32Var(&copies, "image-copies", 0, "machines that have each image a release needs; 1 copies none ahead, at most 100 (default 2)")
	cmd.MarkFlagsOneRequired("certificate-life", "suspect-after", "down-after", "image-copies")
	return cmd
}

func (s verbs) rotateCA() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-ca", Short: "Replace the cluster's root certificate; all machines renew theirs", Args: verb.Between(0, 0),
		Long: "Replace the cluster's root certificate. The old root stays trusted until the next rotation, so that machines which\n" +
			"are away renew their certificates when they come back. Rotate twice to shut out what the old root has signed.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Cluster.RotateCA, &gantryv1.RotateCARequest{})
			if err == nil {
				s.Say("the new root is %s", got.GetRootHash())
			}
			return err
		},
	}
}
