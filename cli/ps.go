package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/appwait"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

func (s *session) psCommand() *cobra.Command {
	var all, everything, quiet, noTrunc, services bool
	var filter psFilter
	cmd := &cobra.Command{
		Use:   "ps [SERVICE...]",
		Short: "List containers: the app's, or all of the environment where there is no Compose file",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := filter.parse(); err != nil {
				return err
			}
			app := ""
			if !everything {
				var err error
				if app, err = s.MaybeApp(cmd.Context()); err != nil {
					return err
				}
			}
			p := &psView{app: app, quiet: quiet, noTrunc: noTrunc, filter: &filter, specs: map[string]*gantryv1.ContainerSpec{}}
			if err := s.psRead(cmd.Context(), p, all || filter.ended(), args); err != nil {
				return err
			}
			if services {
				return s.psServices(p)
			}
			return verb.List(s.Session, p.found, func() error { return s.psPrint(p) })
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "include those that have ended")
	cmd.Flags().BoolVarP(&everything, "everything", "A", false, "all of the environment, not only the app here")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole IDs, images and reasons")
	cmd.Flags().BoolVar(&services, "services", false, "print the names of their services only")
	filter.register(cmd)
	return s.OutputFlag(cmd, "table")
}

// psView is what ps shows, and how.
type psView struct {
	app            string
	quiet, noTrunc bool
	filter         *psFilter
	found          []*gantryv1.InstanceView
	specs          map[string]*gantryv1.ContainerSpec // of services, by "app/service"
	nodes          verb.Nodes
}

// psRead lists instances.
func (s *session) psRead(ctx context.Context, p *psView, all bool, services []string) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Instances.List, &gantryv1.ListInstancesRequest{Environment: s.Environment, App: p.app, All: all})
	if err != nil {
		return err
	}
	p.nodes = got.GetNodes()
	needSpecs := false
	for _, v := range got.GetInstances() {
		if i := v.GetInstance(); len(services) == 0 || slices.Contains(services, i.GetService()) {
			p.found = append(p.found, v)
			needSpecs = needSpecs || i.GetSpec() == nil
		}
	}
	sort.SliceStable(p.found, func(a, b int) bool { return sortKey(p.found[a]) < sortKey(p.found[b]) })
	if needSpecs && (s.Output != "json" || len(p.filter.tests["image"])+len(p.filter.tests["label"]) > 0) {
		if err = s.specsOf(ctx, p.app, p.specs); err != nil {
			return err
		}
	}
	p.found = slices.DeleteFunc(p.found, func(v *gantryv1.InstanceView) bool { return !p.filter.match(p, v) })
	p.found = p.filter.newest(p.found)
	return nil
}

// psServices prints the services that have an instance among those found.
func (s *session) psServices(p *psView) error {
	seen := map[string]bool{}
	for _, v := range p.found {
		if i := v.GetInstance(); i.GetApp() != "" && !seen[i.GetApp()+"/"+i.GetService()] {
			seen[i.GetApp()+"/"+i.GetService()] = true
			name := i.GetService()
			if i.GetApp() != p.app {
				name = i.GetApp() + "/" + name
			}
			s.Put("%s", name)
		}
	}
	return nil
}

func sortKey(v *gantryv1.InstanceView) string {
	i := v.GetInstance()
	return fmt.Sprintf("%s\x00%s\x00%08d", i.GetApp(), i.GetService(), i.GetSlot())
}

func (s *session) specsOf(ctx context.Context, app string, specs map[string]*gantryv1.ContainerSpec) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	var views []*gantryv1.AppView
	if app != "" {
		view, err := client.Call(ctx, c.Apps.Get, &gantryv1.GetAppRequest{Environment: s.Environment, App: app})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		views = append(views, view)
	} else {
		apps, err := client.Call(ctx, c.Apps.List, &gantryv1.ListAppsRequest{Environment: s.Environment})
		if err != nil {
			return err
		}
		views = apps.GetApps()
	}
	for _, view := range views {
		for _, v := range view.GetServices() {
			svc := v.GetService()
			specs[svc.GetApp()+"/"+svc.GetName()] = svc.GetSpec().GetContainer()
		}
	}
	return nil
}

func (s *session) psPrint(p *psView) error {
	if p.quiet {
		for _, v := range p.found {
			s.Put("%s", p.id(v))
		}
		return nil
	}
	head := []string{"NAME", "ID", "IMAGE", "STATUS", "ADDRESS", "PORTS"}
	if p.nodes.Many() {
		head = append(head, "NODE")
	}
	tab := table.New(head...)
	for _, v := range p.found {
		i, st := v.GetInstance(), v.GetStatus()
		row := []string{instanceName(i, p.app), p.id(v), p.image(i), p.status(v), st.GetAddress(), ports(st.GetPorts())}
		if p.nodes.Many() {
			row = append(row, p.nodes.Name(i.GetNode()))
		}
		tab.Row(row...)
	}
	return tab.Write(s.Out)
}

func (p *psView) id(v *gantryv1.InstanceView) string {
	id := v.GetInstance().GetMeta().GetKey()
	if p.noTrunc {
		return id
	}
	return verb.Short(id)
}

// spec is what an instance is made from; one of a service has that of its service.
func (p *psView) spec(i *gantryv1.Instance) *gantryv1.ContainerSpec {
	if i.GetSpec() != nil {
		return i.GetSpec()
	}
	return p.specs[i.GetApp()+"/"+i.GetService()]
}

func (p *psView) image(i *gantryv1.Instance) string {
	image := verb.ImageOf(p.spec(i))
	if p.noTrunc {
		return image
	}
	return verb.ShortImage(image)
}

// status is one line that does not push the other columns away: gantry explain and inspect have the whole reason.
func (p *psView) status(v *gantryv1.InstanceView) string {
	text := status(v, time.Now())
	if p.noTrunc {
		return text
	}
	return human.Cut(text, 60)
}

// instanceName gives the name by which other commands find an instance from the same place.
func instanceName(i *gantryv1.Instance, app string) string {
	switch {
	case i.GetApp() == "":
		return i.GetService()
	case i.GetApp() == app:
		return fmt.Sprintf("%s.%d", i.GetService(), i.GetSlot())
	}
	return fmt.Sprintf("%s/%s.%d", i.GetApp(), i.GetService(), i.GetSlot())
}

// status says how an instance is in Docker's words.
func status(v *gantryv1.InstanceView, at time.Time) string {
	st := v.GetStatus()
	since := func(t interface{ AsTime() time.Time }) string { return human.Age(at.Sub(t.AsTime())) }
	switch {
	case v.GetInstance().GetOutcome() == "succeeded":
		return fmt.Sprintf("Completed (%d) %s ago", st.GetExitCode(), since(st.GetFinishedAt()))
	case st.GetPhase() == gantryv1.InstanceStatus_PHASE_PENDING && st.GetError() != "":
		return "Pending: " + st.GetError()
	}
	switch st.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_RUNNING:
		text := "Up " + since(st.GetStartedAt())
		if st.GetHealth() != gantryv1.InstanceStatus_HEALTH_UNSPECIFIED {
			text += " (" + healthWord(st.GetHealth()) + ")"
		}
		return text + limits(st)
	case gantryv1.InstanceStatus_PHASE_EXITED:
		return fmt.Sprintf("Exited (%d) %s ago", st.GetExitCode(), since(st.GetFinishedAt())) + limits(st)
	case gantryv1.InstanceStatus_PHASE_RESTARTING:
		return fmt.Sprintf("Restarting (%d) after %d", st.GetExitCode(), st.GetRestarts()) + limits(st)
	case gantryv1.InstanceStatus_PHASE_FAILED:
		return "Failed: " + st.GetError()
	}
	word := appwait.PhaseWord(st)
	return strings.ToUpper(word[:1]) + word[1:]
}

// limits says what an instance has run into: memory, processes, the time to end in.
func limits(st *gantryv1.InstanceStatus) (text string) {
	if st.GetOomKilled() {
		text += ", out of memory"
	}
	if n := st.GetPidsLimitReached(); n > 0 {
		text += fmt.Sprintf(", reached its limit of %d processes", n)
	}
	if st.GetKilledAfter() != nil {
		text += fmt.Sprintf(", did not end within %s", st.KilledAfter.AsDuration())
	}
	return text
}

func healthWord(h gantryv1.InstanceStatus_Health) string {
	word := strings.ToLower(strings.TrimPrefix(h.String(), "HEALTH_"))
	if h == gantryv1.InstanceStatus_HEALTH_STARTING {
		return "health: starting"
	}
	return word
}

// ports lists ports as docker ps does.
func ports(list []*gantryv1.PortPublish) string {
	var out []string
	for _, p := range list {
		out = append(out, fmt.Sprintf("%s->%d/%s", hostPort(p), p.GetContainerPort(), protocolOf(p)))
	}
	return strings.Join(out, ", ")
}

func protocolOf(p *gantryv1.PortPublish) string {
	if p.GetProtocol() == "" {
		return "tcp"
	}
	return p.GetProtocol()
}

func hostPort(p *gantryv1.PortPublish) string {
	ip := p.GetHostIp()
	if ip == "" {
		ip = "0.0.0.0"
	}
	return net.JoinHostPort(ip, strconv.Itoa(int(p.GetHostPort())))
}
