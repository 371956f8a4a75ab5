// Package lab runs real daemons for tests, each on a small machine of its own: its own network, process, mount and cgroup
// namespaces, joined to a bridge through which it reaches the outside and is reached from the test. A scenario is ten lines:
//
//	func TestLeaderIsCutOff(t *testing.T) {
//		c := lab.Cluster(t, 3)              // three servers that have found each other
//		c.Node(0).ImportBusybox(t)
//		c.Node(0).GantryIn(t, lab.Project(t, compose), "up")
//		old := c.Leader(t)
//		old.Isolate(t)
//		next := c.Leader(t, c.Except(old)...)
//		next.Gantry(t, "scale", "web=6")
//		c.Heal(t)
//		next.AwaitReady(t, "web", 6)
//	}
//
// Cluster and Form make one cluster, whose servers all vote (AwaitVoters, for one that has changed); Machines makes daemons that
// know nothing of each other; Network and AddNode make machines without a daemon; Beside makes room for a second daemon on a
// machine. Node.Strays tells what of a daemon's making belongs to no instance. `make lab N=3` gives a person a shell on a cluster.
//
// # What can go wrong
//
//	links       Lab.Cut, CutOneWay, Partition, Lose, Heal · Node.Isolate, Mute, Deafen, Lose, Delay, Flap, Heal
//	the cable   Node.Unplug, Plug: the interface is gone, with its addresses · Node.Readdress: it has another
//	the daemon  Node.KillDaemon, StopDaemon, StartDaemon, PauseDaemon, ResumeDaemon
//	the machine Node.Freeze, Thaw (as a paused virtual machine) · PowerOff, PowerOn, Reboot · Wipe, Rejoin
//	the disk    Node.FillDisk, FreeDisk, StallDisk, ResumeDisk, SlowDisk, for machines with Shape.Disk · what was not
//	            synced is lost at a power cut, and Node.TearWrite, for machines with Shape.Volatile
//	the clock   Node.SetClock, on amd64
//
// Node.Running tells what really runs on a machine, whatever its daemon says; Node.Sound whether anything is wrong with it now.
//
// Links are cut in the bridge: machines see no sign of it but silence, and the test still talks to every daemon over its Unix
// socket. The folder of each machine is on the host's disk, so a power cut keeps what was written and not only what was synced,
// but for machines with Shape.Volatile; of those the test finds files with Node.Path.
//
// What happens to every single connection, and when, NewTalk has containers write down: see TestConnectionsAreDrained.
//
// Everything has names unique to the test's process and goes away with the test; several labs run side by side. On failure
// the end of each daemon's log is printed; LAB_KEEP=1 keeps the folders too. A Lab is used from one goroutine; a Node's methods
// that only read and run commands may be called from several. It is not a sandbox: a machine shares the kernel and the disk of
// the host.
package lab
