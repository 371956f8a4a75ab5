package registry_test

import (
	"bufio"
	"bytes"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestConformanceSuite runs the OCI distribution conformance suite. Its program is in no module that can be required: make
// conformance builds it and names it in OCI_CONFORMANCE. What the suite asks for is also in the other tests of this package.
func TestConformanceSuite(t *testing.T) {
	program := os.Getenv("OCI_CONFORMANCE")
	if program == "" {
		t.Skip("runs by: make conformance SUITE=DIR")
	}
	for _, version := range []string{"1.1", "dev"} {
		for _, login := range []bool{false, true} {
			name := version
			if login {
				name += " with TLS and login"
			}
			t.Run(name, func(t *testing.T) { runSuite(t, program, version, login) })
		}
	}
}

func runSuite(t *testing.T, program, version string, login bool) {
	reg := start(t)
	tls, address := "disabled", strings.TrimPrefix(reg.URL, "http://")
	if login {
		reg = startLogin(t, "ann", "s3cret")
		tls, address = "enabled", strings.TrimPrefix(reg.URL, "https://")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+address, "OCI_TLS="+tls, "OCI_VERSION="+version, "OCI_RESULTS_DIR="+dir)
	if login {
		pemFile := filepath.Join(dir, "ca.pem")
		check(t, os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Certificate().Raw}), 0o600))
		cmd.Env = append(cmd.Env, "OCI_USERNAME=ann", "OCI_PASSWORD=s3cret", "SSL_CERT_FILE="+pemFile)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the suite says: %v\n%s", err, out)
	}
	junit, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(bytes.NewReader(junit))
	for n := 0; sc.Scan() && n < 2; n++ {
		if strings.Contains(sc.Text(), "<testsuite") {
			t.Log(sc.Text())
		}
	}
	if bytes.Contains(junit, []byte("<failure")) || !bytes.Contains(junit, []byte("<testcase")) {
		t.Errorf("failures, or no tests at all:\n%.6000s", out)
	}
}
