package engine

import (
	"os/exec"
	"testing"
)

func TestPrintfFormatIsPrintedAsItWas(t *testing.T) {
	data := make([]byte, 0, 512)
	for i := range 256 {
		data = append(data, byte(i), '7') // a digit must not join the number before it
	}
	out, err := exec.Command("/bin/sh", "-c", "printf "+quote(printfFormat(data))).Output()
	if err != nil || string(out) != string(data) {
		t.Errorf("%v: %q", err, out)
	}
}
