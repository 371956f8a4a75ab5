// Command shell starts a cluster of the lab and a shell beside it, for a person to look around and break things by hand.
//
//	make lab N=3
//
// Everything goes away with the shell. It needs root.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/test/lab"
)

func main() {
	machines := flag.Int("n", 3, "machines; up to three of them are servers")
	flag.Parse()
	os.Exit(lab.Main(func(t testing.TB) { shell(t, *machines) }))
}

func shell(t testing.TB, machines int) {
	fmt.Printf("starting a cluster of %d machines\n", machines)
	c := lab.Cluster(t, machines)
	rc := filepath.Join(t.TempDir(), "rc")
	if err := os.WriteFile(rc, []byte(functions(t, c)), 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Print(help(c, lab.BusyboxArchive(t)))
	cmd := exec.Command("bash", "--rcfile", rc)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "GANTRY_HOST="+c.Node(0).Host(), "BASH_ENV="+rc)
	_ = cmd.Run() // its exit code is that of the last thing the person did
	fmt.Println("removing the cluster")
}

// functions is what the shell knows: gI for the command line against machine I, nI to run something on it.
func functions(t testing.TB, c *lab.Lab) string {
	var out strings.Builder
	fmt.Fprintf(&out, "PATH=%s:$PATH\nPS1='lab \\W\\$ '\n", quote(lab.Binaries(t)))
	for i, n := range c.Nodes() {
		var enter []string
		for _, word := range n.Command().Args {
			enter = append(enter, quote(word))
		}
		fmt.Fprintf(&out, "g%d() { GANTRY_HOST=%s gantry \"$@\"; }\n", i, quote(n.Host()))
		fmt.Fprintf(&out, "n%d() { [ $# -gt 0 ] || set -- bash --norc; %s \"$@\"; }\n", i, strings.Join(enter, " "))
	}
	return out.String()
}

func help(c *lab.Lab, image string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "\n%-8s %-14s %-14s %-22s %s\n", "MACHINE", "NAME", "ADDRESS", "GANTRY", "A COMMAND ON IT")
	for i, n := range c.Nodes() {
		fmt.Fprintf(&out, "%-8d %-14s %-14s %-22s %s\n", i, n.Name(), n.Address(), fmt.Sprintf("g%d ps", i), fmt.Sprintf("n%d ip addr", i))
	}
	fmt.Fprintf(&out, `
gantry alone talks to machine 0. An image for first steps: gantry image import %s
Cut a machine off: ip link set %s down · up again: ip link set %[2]s up
Leave with exit: everything is removed.

`, image, c.Node(1%len(c.Nodes())).Name())
	return out.String()
}

// quote makes one word for the shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }
