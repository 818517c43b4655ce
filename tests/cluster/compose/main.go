// Prints the project in COMPOSE_FILE as JSON. Uses the parser of `docker compose`, which checks schema, variables and
// consistency.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	project, err := loadProject()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(project))
}

func loadProject() ([]byte, error) {
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
