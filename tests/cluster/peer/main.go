// Command peer is both ends of what Go programs speak: HTTP/1.1, HTTP/2 with and without TLS, WebSocket and gRPC, on
// the libraries that they speak it with. Linked without cgo, so that names are resolved by Go's own resolver.
//
//	peer serve             HTTP on :8080, HTTPS on :8443, gRPC on :50051, until it is killed
//	peer get URL           prints the protocol's version and the body
//	peer websocket URL     sends messages of several sizes, which have to come back; prints their number
//	peer grpc HOST:PORT    a unary call, a stream both ways and a failing call; prints the failure's message
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "serve" {
		return serve()
	}
	if len(args) == 2 {
		switch args[0] {
		case "get":
			return get(args[1])
		case "websocket":
			return talk(args[1])
		case "grpc":
			return call(args[1])
		}
	}
	return fmt.Errorf("usage: peer serve | get URL | websocket URL | grpc HOST:PORT")
}
