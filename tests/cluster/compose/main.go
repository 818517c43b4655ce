// Prints what the files in COMPOSE_FILE declare, as JSON, by the parser that `docker compose` has: schema, variables,
// consistency.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	declared, err := declaration()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(declared))
}

func declaration() ([]byte, error) {
	options, err := cli.NewProjectOptions(nil, cli.WithOsEnv, cli.WithConfigFileEnv, cli.WithDefaultProfiles())
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalJSON()
}
