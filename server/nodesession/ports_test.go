package nodesession_test

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestNodesAreToldWhichPortsToPublish: those that the service was given, and each chooses its own in mode host.
func TestNodesAreToldWhichPortsToPublish(t *testing.T) {
	w := newWorld(t)
	defer w.lead()()
	objects := service("shop", "web", "p/shop/default",
		&gantryv1.PortPublish{ContainerPort: 80, Protocol: "tcp"}, &gantryv1.PortPublish{ContainerPort: 80, Protocol: "tcp", Mode: "host"})
	web := objects[0].(*gantryv1.Service)
	web.Published = []*gantryv1.PortPublish{{HostPort: 30500, ContainerPort: 80, Protocol: "tcp", Mode: "ingress"}}
	w.put(append(objects, machine("n1"), machine("n2"))...)
	told := func(m *member, want uint32) func() bool {
		return func() bool {
			ports := m.known["p/shop/web"].GetPorts()
			return len(ports) == 2 && ports[0].HostPort == want && ports[1].HostPort == 0
		}
	}
	one, two := w.join("n1"), w.join("n2")
	one.until("the port", told(one, 30500))
	two.until("the port", told(two, 30500))
	web.Published[0].HostPort = 30501
	w.put(web)
	one.until("another port", told(one, 30501))
	two.until("another port", told(two, 30501))
}
