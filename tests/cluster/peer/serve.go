package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// serve returns when one of the servers has failed.
func serve() error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.Proto) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() // for HTTP/1.1; HTTP/2 always is
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("/websocket", echoMessages)
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	plain := &http.Server{Addr: ":8080", Handler: h2c.NewHandler(mux, &http2.Server{})}
	secure := &http.Server{Addr: ":8443", Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	calls := grpc.NewServer()
	pb.RegisterTestServiceServer(calls, &service{})
	listener, err := net.Listen("tcp", ":50051")
	if err != nil {
		return err
	}
	failed := make(chan error, 3)
	go func() { failed <- plain.ListenAndServe() }()
	go func() { failed <- secure.ListenAndServeTLS("", "") }()
	go func() { failed <- calls.Serve(listener) }()
	return <-failed
}

// echoMessages sends every message of a WebSocket back.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	socket, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return // the client was told
	}
	defer socket.Close()
	for {
		kind, message, err := socket.ReadMessage()
		if err != nil || socket.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// service is the part of gRPC's interoperability service that its client here calls.
type service struct {
	pb.UnimplementedTestServiceServer
}

func (*service) UnaryCall(_ context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if echo := in.GetResponseStatus(); echo != nil {
		return nil, status.Error(codes.Code(echo.GetCode()), echo.GetMessage())
	}
	return &pb.SimpleResponse{Payload: payload(in.GetResponseSize())}, nil
}

func (*service) FullDuplexCall(stream pb.TestService_FullDuplexCallServer) error {
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, wanted := range in.GetResponseParameters() {
			if err := stream.Send(&pb.StreamingOutputCallResponse{Payload: payload(wanted.GetSize())}); err != nil {
				return err
			}
		}
	}
}

func payload(size int32) *pb.Payload { return &pb.Payload{Body: make([]byte, size)} }

// selfSigned makes a certificate that nobody has a reason to trust.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "peer"},
		DNSNames:     []string{"peer"},
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
