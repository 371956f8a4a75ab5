package appwait

import (
	"fmt"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/cli/terminal"
)

// appDisplay shows an app on its way.
type appDisplay interface {
	update([]*gantryv1.ServiceView)
	tick()
	close()
}

func (s *Waiter) newAppDisplay(app string) appDisplay {
	if live := s.NewLive(); live != nil {
		return &liveApp{s: s, app: app, live: live, style: s.Style, begun: time.Now(), took: map[string]time.Duration{}}
	}
	return &plainApp{s: s, last: map[string]string{}}
}

// stateOf says in a few words where a service is.
func stateOf(v *gantryv1.ServiceView) string {
	count := fmt.Sprintf("%d/%d ready", v.GetReady(), v.GetWanted())
	switch {
	case v.GetService().GetStopped():
		return stoppedState(v)
	case v.GetFailure() != "":
		return "failed: " + v.GetFailure()
	case v.GetConverged() && v.GetService().GetSpec().GetJob().GetSchedule() != "":
		return "scheduled"
	case v.GetConverged() && strings.HasSuffix(v.GetService().GetSpec().GetMode(), "-job"):
		return "completed"
	case v.GetConverged():
		return count
	case v.GetWaiting() != "":
		return count + ", " + v.GetWaiting()
	}
	if busy := busiest(v); busy != "" {
		return count + ", " + busy
	}
	return count
}

func stoppedState(v *gantryv1.ServiceView) string {
	if Stopped([]*gantryv1.ServiceView{v}) {
		return "stopped"
	}
	return "stopping"
}

// busiest tells what the instances that are not ready are doing.
func busiest(v *gantryv1.ServiceView) string {
	counts := map[string]int{}
	for _, i := range v.GetInstances() {
		if i.GetInstance().GetDesired() == gantryv1.Instance_DESIRED_RUNNING {
			if word := PhaseWord(i.GetStatus()); word != "" {
				counts[word]++
			}
		}
	}
	for _, word := range []string{"failed", "restarting", "exited", "unhealthy", "pulling", "creating", "pending", "starting", "health starting"} {
		if counts[word] > 0 {
			return word
		}
	}
	return ""
}

// PhaseWord gives the phase in one word; nothing for an instance that is as it should be.
func PhaseWord(st *gantryv1.InstanceStatus) string {
	phase := strings.ToLower(strings.TrimPrefix(st.GetPhase().String(), "PHASE_"))
	switch st.GetPhase() {
	case gantryv1.InstanceStatus_PHASE_UNSPECIFIED:
		return "pending"
	case gantryv1.InstanceStatus_PHASE_CREATED:
		return "starting"
	case gantryv1.InstanceStatus_PHASE_RUNNING:
		switch st.GetHealth() {
		case gantryv1.InstanceStatus_HEALTH_STARTING:
			return "health starting"
		case gantryv1.InstanceStatus_HEALTH_UNHEALTHY:
			return "unhealthy"
		}
		return ""
	}
	return phase
}

// plainApp prints a line whenever a service's state changes.
type plainApp struct {
	s    *Waiter
	last map[string]string
}

func (p *plainApp) update(views []*gantryv1.ServiceView) {
	for _, v := range views {
		name, state := v.GetService().GetName(), stateOf(v)
		if p.last[name] != state {
			p.last[name] = state
			p.s.Say("%s: %s", name, state)
		}
	}
}

func (p *plainApp) tick()  {}
func (p *plainApp) close() {}

// liveApp keeps one line per service up to date.
type liveApp struct {
	s     *Waiter
	app   string
	live  *terminal.Live
	style terminal.Style
	begun time.Time
	took  map[string]time.Duration
	views []*gantryv1.ServiceView
	turn  int
}

func (l *liveApp) update(views []*gantryv1.ServiceView) {
	l.views = views
	l.draw()
}

func (l *liveApp) tick() {
	l.turn++
	l.draw()
}

func (l *liveApp) close() { l.draw() }

func (l *liveApp) draw() {
	ready, width := 0, 0
	for _, v := range l.views {
		width = max(width, len(v.GetService().GetName()))
		if v.GetConverged() {
			ready++
		}
	}
	elapsed := time.Since(l.begun)
	lines := []string{fmt.Sprintf("[+] %s in %s %s (%d/%d)", printable.Line(l.app), l.s.Environment, human.Duration(elapsed), ready, len(l.views))}
	for _, v := range l.views {
		lines = append(lines, l.line(v, width, elapsed))
	}
	l.live.Draw(lines)
}

func (l *liveApp) line(v *gantryv1.ServiceView, width int, elapsed time.Duration) string {
	name := v.GetService().GetName()
	if !v.GetConverged() {
		delete(l.took, name)
	} else if _, ok := l.took[name]; !ok {
		l.took[name] = elapsed
	}
	text := fmt.Sprintf("%-*s  %s", width, printable.Line(name), printable.Line(stateOf(v)))
	switch took, ok := l.took[name]; {
	case v.GetFailure() != "":
		return " " + l.style.Paint(terminal.Red, "✘ "+text)
	case ok:
		return " " + l.style.Paint(terminal.Green, "✔") + " " + text + "  " + l.style.Paint(terminal.Faint, human.Duration(took))
	}
	spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	return " " + string(spinner[l.turn%len(spinner)]) + " " + text
}

// Stopped is done for a wait until nothing of the services runs.
func Stopped(views []*gantryv1.ServiceView) bool {
	for _, v := range views {
		for _, i := range v.GetInstances() {
			switch i.GetStatus().GetPhase() {
			case gantryv1.InstanceStatus_PHASE_EXITED, gantryv1.InstanceStatus_PHASE_FAILED, gantryv1.InstanceStatus_PHASE_REMOVED,
				gantryv1.InstanceStatus_PHASE_CREATED:
			default:
				return false
			}
		}
	}
	return true
}
