// Command livenessprobe answers the kubelet's HTTP probe with the driver's own answer to the CSI call Probe. It takes the flags of the
// sidecar of that name, whose module the Go module proxy does not offer.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	port := flag.String("health-port", "9808", "TCP port, on all addresses")
	endpoint := flag.String("http-endpoint", "", "address and port, instead of --health-port")
	timeout := flag.Duration("probe-timeout", time.Second, "how long the driver may take to answer")
	flag.Int("v", 0, "accepted, without effect")
	flag.Parse()
	target, at := *address, *endpoint
	if !strings.HasPrefix(target, "unix:") {
		target = "unix://" + target
	}
	if at == "" {
		at = ":" + *port
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), *timeout)
		defer cancel()
		answer, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case answer.GetReady() != nil && !answer.GetReady().GetValue():
			http.Error(w, "the driver is not ready yet", http.StatusInternalServerError)
		default:
			w.Write([]byte("ok\n"))
		}
	})
	server := &http.Server{Addr: at, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}
