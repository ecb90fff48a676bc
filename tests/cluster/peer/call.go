package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// limit is how long a call may take in all.
const limit = 10 * time.Second

// sizes of messages: empty, within a segment, more than a window of HTTP/2 and more than any buffer on the way.
var sizes = []int{0, 1, 1000, 100_000, 5_000_000}

// get trusts any certificate: whose it is, is not what is looked at.
func get(url string) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, Timeout: limit}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	fmt.Print(response.Proto, " ")
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func talk(url string) error {
	dialer := &websocket.Dialer{HandshakeTimeout: limit}
	socket, _, err := dialer.Dial(url, nil)
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	for _, size := range sizes {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		// The server reads while it is not writing: one message at a time, as large as it may be.
		if err := socket.WriteMessage(websocket.BinaryMessage, sent); err != nil {
			return err
		}
		_, received, err := socket.ReadMessage()
		if err != nil {
			return err
		}
		if !bytes.Equal(sent, received) {
			return fmt.Errorf("%d bytes came back as %d other ones", len(sent), len(received))
		}
	}
	fmt.Println(len(sizes), "messages")
	return nil
}

func call(target string) error {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client := pb.NewTestServiceClient(connection)
	response, err := client.UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: 314_159, Payload: payload(271_828)})
	if err != nil {
		return err
	}
	if size := len(response.GetPayload().GetBody()); size != 314_159 {
		return fmt.Errorf("the unary call returned %d bytes", size)
	}
	if err := pingPong(ctx, client); err != nil {
		return err
	}
	wanted := &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "this was asked for"}
	_, err = client.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: wanted})
	if status.Code(err) != codes.DataLoss {
		return fmt.Errorf("the failing call ended with %w", err)
	}
	fmt.Println(status.Convert(err).Message())
	return nil
}

// pingPong asks for a message when it has the one before, then closes its direction and waits for the end.
func pingPong(ctx context.Context, client pb.TestServiceClient) error {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for _, size := range sizes {
		wanted := []*pb.ResponseParameters{{Size: int32(size)}}
		if err := stream.Send(&pb.StreamingOutputCallRequest{ResponseParameters: wanted, Payload: payload(27_182)}); err != nil {
			return err
		}
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if got := len(message.GetPayload().GetBody()); got != size {
			return fmt.Errorf("%d bytes in a message of %d", got, size)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("the stream ended with %w", err)
	}
	return nil
}
