// Package host is the verbs for Gantry itself: system, version and completion.
package host

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/kept"
	"github.com/gantryd/gantry/cli/outline"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// verbs gives the verbs of this package what all share.
type verbs struct{ *verb.Session }

// System is `gantry system`.
func System(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return verb.Group("system", "The daemon and its machine", s.systemInfo(), s.systemDf(), s.systemPrune(), s.systemEnvs(), s.systemSetEnv())
}

func (s verbs) systemInfo() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "info", Short: "Print what the daemon knows of itself and its machine", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			info, err := client.Call(cmd.Context(), c.System.Info, &gantryv1.InfoRequest{Node: node})
			if err != nil {
				return err
			}
			if s.Output == "json" {
				return verb.One(s.Session, info)
			}
			return s.printInfo(info)
		},
	}
	nodeFlag(cmd, &node, "ask this node in place of the machine that is called")
	return s.OutputFlag(cmd, "table")
}

func nodeFlag(cmd *cobra.Command, node *string, what string) {
	cmd.Flags().StringVar(node, "node", "", what+": its name or ID")
}

func (s verbs) printInfo(i *gantryv1.InfoResponse) error {
	nodes := ""
	if all := verb.Nodes(i.GetNodes()); all.Many() {
		names := make([]string, 0, len(all))
		for _, n := range all {
			names = append(names, all.Name(n.GetId()))
		}
		nodes = strings.Join(names, ", ")
	}
	for _, row := range [][2]string{
		{"Node", i.GetNode()},
		{"Host", i.GetHostname()},
		{"Version", i.GetVersion()},
		{"Started", verb.Ago(i.GetStartedAt())},
		{"System", strings.TrimSpace(i.GetOs() + " " + i.GetArch() + ", kernel " + i.GetKernel())},
		{"CPUs", fmt.Sprint(i.GetCpus())},
		{"Memory", human.Memory(uint64(i.GetMemory()))},
		{"Root", i.GetRoot()},
		{"Run", i.GetRun()},
		{"Subnet", i.GetSubnet()},
		{"Registry", i.GetRegistryAddress()},
		{"Instances", fmt.Sprintf("%d, %d running", i.GetInstances(), i.GetRunning())},
		{"Images", fmt.Sprint(i.GetImages())},
		{"Nodes", nodes},
	} {
		if row[0] == "Nodes" && nodes == "" {
			continue // there is but this one
		}
		s.Put("%-10s %s", row[0]+":", verb.Dash(row[1]))
	}
	if len(i.GetChecks()) == 0 {
		return nil
	}
	fmt.Fprintln(s.Out)
	tab := table.New("KERNEL", "THERE", "DETAIL", "WITHOUT IT")
	for _, c := range i.GetChecks() {
		there, cost := "yes", ""
		if !c.GetPresent() {
			there, cost = "no", c.GetCost()
			if c.GetRequired() {
				there = "NO, required"
			}
		}
		tab.Row(c.GetFeature(), there, c.GetDetail(), cost)
	}
	return tab.Write(s.Out)
}

func (s verbs) systemDf() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "df", Short: "Print what takes how much of the disk, on each node", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.System.DiskUsage, &gantryv1.DiskUsageRequest{Node: node})
			if err != nil {
				return err
			}
			err = verb.List(s.Session, got.GetRows(), func() error { return diskTable(got).Write(s.Out) })
			return errors.Join(err, s.Missing(got.GetFailures()))
		},
	}
	nodeFlag(cmd, &node, "only this node")
	return s.OutputFlag(cmd, "table")
}

func diskTable(got *gantryv1.DiskUsageResponse) *table.Table {
	nodes := verb.Nodes(got.GetNodes())
	head := []string{"KIND", "COUNT", "ACTIVE", "SIZE", "RECLAIMABLE"}
	if nodes.Many() {
		head = append(head, "NODE")
	}
	tab := table.New(head...)
	for _, r := range got.GetRows() {
		row := []string{r.GetKind(), fmt.Sprint(r.GetCount()), fmt.Sprint(r.GetActive()), human.Size(r.GetSize()), human.Size(r.GetReclaimable())}
		if nodes.Many() {
			row = append(row, nodes.Name(r.GetNode()))
		}
		tab.Row(row...)
	}
	return tab
}

func (s verbs) systemPrune() *cobra.Command {
	var all, volumes, force bool
	var keep string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove ended run containers, unused images and old build cache", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "ended containers of run, images without a name and build cache"
			if all {
				what = "ended containers of run, all images that nothing uses and all build cache"
			}
			if volumes {
				what += ", and anonymous volumes that nothing uses"
			}
			if err := s.Confirm(force, what); err != nil {
				return err
			}
			var bytes int64
			if keep != "" {
				var err error
				if bytes, err = human.ParseSize(keep); err != nil {
					return err
				}
			}
			return s.prune(cmd.Context(), all, volumes, bytes)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also named images that nothing uses")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "also anonymous volumes that nothing uses")
	cmd.Flags().StringVar(&keep, "keep-storage", "", "build cache to keep: 2g")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (s verbs) prune(ctx context.Context, all, volumes bool, keep int64) error {
	failed := []error{s.pruneInstances(ctx), images.Prune(ctx, s.Session, all)}
	if volumes {
		failed = append(failed, kept.PruneVolumes(ctx, s.Session, false))
	}
	failed = append(failed, s.pruneBuildCache(ctx, all, keep))
	return s.Join(slices.DeleteFunc(failed, func(err error) bool { return err == nil }))
}

func (s verbs) pruneBuildCache(ctx context.Context, all bool, keep int64) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Images.PruneBuildCache, &gantryv1.PruneBuildCacheRequest{All: all, Keep: keep})
	if err == nil {
		s.Say("%s of build cache removed, %s reclaimed", verb.Count(int(got.GetRecords()), "record"), human.Size(got.GetReclaimed()))
	}
	return errors.Join(err, s.Missing(got.GetFailures()))
}

// pruneInstances removes containers of run that have ended. Those of services belong to their apps.
func (s verbs) pruneInstances(ctx context.Context) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Instances.List, &gantryv1.ListInstancesRequest{Environment: s.Environment, All: true})
	if err != nil {
		return err
	}
	removed := 0
	for _, v := range got.GetInstances() {
		phase := v.GetStatus().GetPhase()
		if v.GetInstance().GetApp() != "" || phase != gantryv1.InstanceStatus_PHASE_EXITED && phase != gantryv1.InstanceStatus_PHASE_FAILED {
			continue
		}
		id := v.GetInstance().GetMeta().GetKey()
		_, err := client.Call(ctx, c.Instances.Remove, &gantryv1.RemoveInstanceRequest{Target: s.Target("", id), Volumes: true})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		s.Put("%s", id)
		removed++
	}
	s.Say("%s removed", verb.Count(removed, "container"))
	return nil
}

func (s verbs) systemEnvs() *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "environments", Short: "List environments", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.System.Environments, &gantryv1.EnvironmentsRequest{})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetEnvironments(), func() error {
				tab := table.New("NAME", "PRIVILEGED")
				for _, e := range got.GetEnvironments() {
					word := "refused"
					if e.GetSpec().GetAllowPrivileged() {
						word = "permitted"
					}
					tab.Row(e.GetMeta().GetKey(), word)
				}
				return tab.Write(s.Out)
			})
		},
	}, "table")
}

func (s verbs) systemSetEnv() *cobra.Command {
	var privileged bool
	cmd := &cobra.Command{
		Use: "set-environment NAME", Short: "Set what an environment permits", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			_, err = client.Call(cmd.Context(), c.System.SetEnvironment, &gantryv1.SetEnvironmentRequest{
				Name: args[0], Spec: &gantryv1.EnvironmentSpec{AllowPrivileged: privileged},
			})
			return err
		},
	}
	cmd.Flags().BoolVar(&privileged, "allow-privileged", false, "permit privileged containers and host devices")
	return cmd
}

// Version is `gantry version`.
func Version(session *verb.Session) *cobra.Command {
	s := verbs{session}
	var clientOnly, modules bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the daemon", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			both := &versions{Client: versionOf{Version: s.Version, Commit: s.Commit, GoVersion: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}}
			if !clientOnly {
				both.ask(cmd.Context(), s)
			}
			return both.print(s, modules)
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask the daemon")
	cmd.Flags().BoolVar(&modules, "modules", false, "print the daemon's libraries too")
	return s.OutputFlag(cmd, "table")
}

type versionOf struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	GoVersion string `json:"goVersion"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
}

type versions struct {
	Client  versionOf         `json:"client"`
	Daemon  *versionOf        `json:"daemon,omitempty"`
	Modules map[string]string `json:"modules,omitempty"`
	Problem string            `json:"problem,omitempty"`
	err     error
}

// ask fills in the daemon's part; a daemon that does not answer is a line of the answer, not a failure.
func (v *versions) ask(ctx context.Context, s verbs) {
	c, err := s.Client()
	if err == nil {
		var got *gantryv1.VersionResponse
		if got, err = client.Call(ctx, c.System.Version, &gantryv1.VersionRequest{}); err == nil {
			v.Daemon = &versionOf{Version: got.GetVersion(), Commit: got.GetCommit(), GoVersion: got.GetGoVersion(), OS: got.GetOs(), Arch: got.GetArch()}
			v.Modules = got.GetModules()
			return
		}
	}
	v.err, v.Problem = err, err.Error()
}

func (v *versions) print(s verbs, modules bool) error {
	if !modules {
		v.Modules = nil
	}
	if s.Output == "json" {
		text, err := verb.JSONText(v)
		if err == nil {
			_, err = fmt.Fprintln(s.Out, text)
		}
		return err
	}
	put := func(name string, of versionOf) {
		commit := ""
		if of.Commit != "" {
			commit = " (" + verb.Short(of.Commit) + ")"
		}
		s.Put("%-8s %s%s, %s %s/%s", name, of.Version, commit, of.GoVersion, of.OS, of.Arch)
	}
	put("gantry", v.Client)
	if v.Daemon != nil {
		put("gantryd", *v.Daemon)
	} else if v.err != nil {
		s.Put("%-8s %s", "gantryd", "not reachable: "+v.err.Error())
		if hint := fault.HintOf(v.err); hint != "" {
			s.Say("hint: %s", hint)
		}
	}
	if len(v.Modules) == 0 {
		return nil
	}
	tab := table.New("MODULE", "VERSION")
	for _, name := range outline.SortedKeys(v.Modules) {
		tab.Row(name, v.Modules[name])
	}
	return tab.Write(s.Out)
}

// Completion is `gantry completion`.
func Completion(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "Print a shell's completion script",
		Long: `Print a shell's completion script. For bash, now and at every login:

  source <(gantry completion bash)
  gantry completion bash | sudo tee /etc/bash_completion.d/gantry >/dev/null`,
		Args: verb.Between(1, 1), ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(s.Out, true)
			case "zsh":
				return root.GenZshCompletion(s.Out)
			case "fish":
				return root.GenFishCompletion(s.Out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(s.Out)
			}
			return verb.Usage(cmd, "there is no completion for %q", args[0])
		},
	}
}
