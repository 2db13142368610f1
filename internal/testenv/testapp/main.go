// Command testapp is the application inside the test containers: a static
// binary alone in its image. Its first argument, or the variable APP_MODE, says
// how it behaves:
//
//	serve           answers HTTP on :8080 (default)
//	crash [N]       says so and exits with N (default 1)
//	start N FILE    crashes, but serves from its Nth start on, which FILE counts
//	relapse FILE D  crashes at its first start at once, at every later one, which FILE
//	                counts, after D (a duration)
//	once [N]        does its one job and exits with N (default 0)
//	sick            serves, but its health check never succeeds
//	late            serves, healthy once APP_DELAY (a duration) has passed
//	health          the health check: asks the server in the same container
//
// The server answers / with its version, /env?name=X with a variable, /file?path=X
// with a file and /health with 200 or 503.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

var version = os.Getenv("APP_VERSION") // the image sets it

func main() {
	mode := os.Getenv("APP_MODE")
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "", "serve", "sick", "late":
		serve(mode)
	case "crash":
		end("cannot go on: "+os.Getenv("APP_LAST_WORDS"), 1)
	case "start":
		if n, _ := strconv.Atoi(os.Args[2]); starts(os.Args[3]) < n {
			fmt.Println("cannot reach the database")
			os.Exit(1)
		}
		serve(mode)
	case "relapse":
		if starts(os.Args[2]) > 1 {
			lives, _ := time.ParseDuration(os.Args[3])
			time.Sleep(lives)
		}
		fmt.Println("cannot reach the database")
		os.Exit(1)
	case "once":
		end("the one job is done", 0)
	case "health":
		health()
	default:
		end("unknown mode "+mode, 2)
	}
}

// starts counts one more start in the file, and returns how many there were.
func starts(file string) int {
	counted, _ := os.ReadFile(file) // none before the first
	counted = append(counted, 'x')
	if err := os.WriteFile(file, counted, 0o644); err != nil {
		end(err.Error(), 3)
	}
	return len(counted)
}

// end says something and exits with the code of the second argument.
func end(text string, code int) {
	fmt.Println("testapp", version, text)
	if len(os.Args) > 2 {
		if n, err := strconv.Atoi(os.Args[2]); err == nil {
			code = n
		}
	}
	os.Exit(code)
}

func serve(mode string) {
	start := time.Now()
	delay, _ := time.ParseDuration(os.Getenv("APP_DELAY"))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, version) })
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) {
		value, ok := os.LookupEnv(r.FormValue("name"))
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, value)
	})
	http.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(r.FormValue("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(data)
	})
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if mode == "sick" || mode == "late" && time.Since(start) < delay {
			http.Error(w, "not well", http.StatusServiceUnavailable)
		}
	})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Println("testapp", version, "serves")
	fmt.Println(http.ListenAndServe(":8080", nil))
	os.Exit(1)
}

func health() {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get("http://127.0.0.1:8080/health")
	if err != nil {
		end("is not reachable: "+err.Error(), 1)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		end("is not well: "+resp.Status, 1)
	}
}
