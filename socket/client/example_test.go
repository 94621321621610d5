// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

// A program that needs a password, and runs wherever the agent does.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	config, err := client.FromEnvironment(os.Getenv)
	if err != nil {
		log.Fatal(err)
	}
	keyhole, err := client.New(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer keyhole.Close()

	path, err := secret.ParsePath("db/creds")
	if err != nil {
		log.Fatal(err)
	}
	credentials, err := keyhole.Get(ctx, path, 0)
	switch {
	case errors.Is(err, secret.ErrDenied):
		log.Fatal("no policy lets this program read db/creds: ", err)
	case err != nil:
		log.Fatal(err)
	}
	defer credentials.Values.Wipe()

	for key, value := range credentials.Values.All() {
		fmt.Printf("%s has %d bytes\n", key, len(value))
	}
}
