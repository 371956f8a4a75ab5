package cli

import (
	"context"
	"fmt"
	"net"
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
	var all, everything, quiet, noTrunc bool
	cmd := &cobra.Command{
		Use:   "ps [SERVICE...]",
		Short: "List containers: the app's, or all of the environment where there is no Compose file",
		Args:  verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app := ""
			if !everything {
				var err error
				if app, err = s.MaybeApp(cmd.Context()); err != nil {
					return err
				}
			}
			p := &psView{app: app, quiet: quiet, noTrunc: noTrunc, images: map[string]string{}}
			if err := s.psRead(cmd.Context(), p, all, args); err != nil {
				return err
			}
			return verb.List(s.Session, p.found, func() error { return s.psPrint(p) })
		},
	}
	s.Compose.Register(cmd.Flags(), "f", "p")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "include those that have ended")
	cmd.Flags().BoolVarP(&everything, "everything", "A", false, "all of the environment, not only the app here")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole IDs and images")
	return s.OutputFlag(cmd, "table")
}

// psView is what ps shows, and how.
type psView struct {
	app            string
	quiet, noTrunc bool
	found          []*gantryv1.InstanceView
	images         map[string]string // of services, by "app/service"
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
	needImages := false
	for _, v := range got.GetInstances() {
		if i := v.GetInstance(); len(services) == 0 || contains(services, i.GetService()) {
			p.found = append(p.found, v)
			needImages = needImages || i.GetSpec() == nil
		}
	}
	sort.SliceStable(p.found, func(a, b int) bool { return sortKey(p.found[a]) < sortKey(p.found[b]) })
	if needImages && s.Output != "json" {
		err = s.imagesOf(ctx, p.app, p.images)
	}
	return err
}

func contains(list []string, word string) bool {
	for _, w := range list {
		if w == word {
			return true
		}
	}
	return false
}

func sortKey(v *gantryv1.InstanceView) string {
	i := v.GetInstance()
	return fmt.Sprintf("%s\x00%s\x00%08d", i.GetApp(), i.GetService(), i.GetSlot())
}

func (s *session) imagesOf(ctx context.Context, app string, images map[string]string) error {
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
			images[svc.GetApp()+"/"+svc.GetName()] = verb.ImageOf(svc.GetSpec().GetContainer())
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
		row := []string{instanceName(i, p.app), p.id(v), p.image(i), status(v, time.Now()), st.GetAddress(), ports(st.GetPorts())}
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

func (p *psView) image(i *gantryv1.Instance) string {
	image := verb.ImageOf(i.GetSpec())
	if image == "" {
		image = p.images[i.GetApp()+"/"+i.GetService()]
	}
	if p.noTrunc {
		return image
	}
	return verb.ShortImage(image)
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
		return text
	case gantryv1.InstanceStatus_PHASE_EXITED:
		text := fmt.Sprintf("Exited (%d) %s ago", st.GetExitCode(), since(st.GetFinishedAt()))
		if st.GetOomKilled() {
			text += ", out of memory"
		}
		return text
	case gantryv1.InstanceStatus_PHASE_RESTARTING:
		return fmt.Sprintf("Restarting (%d) after %d", st.GetExitCode(), st.GetRestarts())
	case gantryv1.InstanceStatus_PHASE_FAILED:
		return "Failed: " + st.GetError()
	}
	word := appwait.PhaseWord(st)
	return strings.ToUpper(word[:1]) + word[1:]
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
