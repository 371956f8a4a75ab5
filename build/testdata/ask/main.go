// Ask says "ping" to the SSH agent of its environment and prints the answer.
package main

import (
	"io"
	"net"
	"os"
)

func main() {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		panic(err)
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		panic(err)
	}
	io.Copy(os.Stdout, conn)
}
