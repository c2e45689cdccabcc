// Command csi-node-driver-registrar announces a CSI driver to the kubelet: it serves the kubelet's plugin registration interface on a
// socket in the kubelet's directory. It takes the flags of the sidecar of that name that the driver's manifest uses, whose module the
// Go module proxy does not offer.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	driver   string
	endpoint string
	refused  chan string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.driver,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if r.PluginRegistered {
		log.Printf("%s is registered", s.driver)
	} else {
		select {
		case s.refused <- r.Error:
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// name asks the driver until it answers: it starts beside us.
func name(ctx context.Context, address string) (string, error) {
	if !strings.HasPrefix(address, "unix:") {
		address = "unix://" + address
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	r, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return r.GetName(), err
}

func run() error {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket, here")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, for the kubelet")
	dir := flag.String("plugin-registration-path", "/registration", "the kubelet's directory for registrations, here")
	timeout := flag.Duration("timeout", time.Minute, "how long the driver may take to answer")
	flag.Int("v", 0, "accepted, without effect")
	flag.Parse()
	if *endpoint == "" {
		return fmt.Errorf("--kubelet-registration-path is missing: give the path of the driver's socket as the kubelet sees it")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	asking, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	driver, err := name(asking, *address)
	if err != nil {
		return fmt.Errorf("the driver at %s does not tell its name: %w", *address, err)
	}
	socket := filepath.Join(*dir, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &server{driver: driver, endpoint: *endpoint, refused: make(chan string, 1)}
	g := grpc.NewServer()
	registration.RegisterRegistrationServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	// The listener takes its socket away, so that the kubelet forgets the driver.
	defer g.Stop()
	select {
	case <-ctx.Done():
		return nil
	case why := <-s.refused:
		return fmt.Errorf("the kubelet refuses %s: %s", driver, why)
	case err := <-served:
		return err
	}
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
