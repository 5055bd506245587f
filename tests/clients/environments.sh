# shellcheck shell=bash
# How each client is installed, pinned, and started. Read by run.sh, which sets CACHE.

ways_of() { # ways_of CLIENT: the other ways in which it runs
	case $1 in
	confluent) say confluent-idempotent confluent-848 ;;
	aiokafka) say aiokafka-idempotent ;;
	java | franz-go | rdkafka) say "$1-848" ;;
	esac
}

venv() { # venv NAME PACKAGE…
	local dir=$CACHE/$1
	shift
	local wanted="$*"
	[ "$(cat "$dir/.installed" 2>/dev/null)" = "$wanted" ] && return
	say "Installing $wanted"
	rm -rf "$dir"
	python3 -m venv "$dir" && "$dir/bin/pip" install --quiet "$@" && printf '%s' "$wanted" >"$dir/.installed"
}

maven() { # maven FOLDER: the jars that its pom names, and its classes
	local dir=$CACHE/$1 sum
	command -v javac >/dev/null && command -v mvn >/dev/null || return
	if ! cmp -s "$1/pom.xml" "$dir/pom.xml"; then
		say "Installing what $1/pom.xml names"
		rm -rf "$dir" && mkdir -p "$dir" || return
		mvn -q -B -f "$1/pom.xml" dependency:copy-dependencies -DoutputDirectory="$dir/jars" && cp "$1/pom.xml" "$dir/" || return
	fi
	sum=$(cat "$1"/*.java | sha256sum)
	[ "$(cat "$dir/.compiled" 2>/dev/null)" = "$sum" ] && return
	javac -nowarn -d "$dir/classes" -cp "$dir/jars/*" "$1"/*.java && printf '%s' "$sum" >"$dir/.compiled"
}

prepare() { # prepare CLIENT: makes sure that it is there
	case $1 in
	driver) venv driver confluent-kafka==2.16.1 kafka-python==3.0.12 ;;
	confluent) venv confluent confluent-kafka==2.16.1 ;;
	kafka-python) venv kafka-python kafka-python==3.0.12 python-snappy==0.7.3 lz4==4.4.5 zstandard==0.25.0 ;;
	aiokafka) venv aiokafka aiokafka==0.14.0 cramjam==2.14.0 ;;
	kcat) command -v kcat >/dev/null ;;
	kafkajs)
		local dir=$CACHE/kafkajs
		cmp -s kafkajs/package.json "$dir/package.json" && [ -e "$dir/.installed" ] && return
		command -v npm >/dev/null || return
		say "Installing kafkajs"
		rm -rf "$dir" && mkdir -p "$dir" && cp kafkajs/package.json "$dir/" &&
			(cd "$dir" && npm install --silent --no-package-lock) && touch "$dir/.installed"
		;;
	java | tools | streams | connect) maven java ;;
	franz-go | sarama | kafka-go)
		command -v go >/dev/null || return
		mkdir -p "$CACHE/go" && (cd go && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -buildvcs=false -o "$CACHE/go/$1" "./$1")
		;;
	rdkafka) CARGO_TARGET_DIR="$CACHE/rdkafka" cargo build --quiet --locked --manifest-path rdkafka/Cargo.toml ;;
	*) false ;;
	esac
}

JVM=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn)

command_of() { # command_of NAME: sets COMMAND, to which a mode and its arguments are added
	local next=(env STRANDLINE_GROUP_PROTOCOL=consumer)
	case $1 in
	*-848)
		command_of "${1%-848}"
		COMMAND=("${next[@]}" "${COMMAND[@]}")
		;;
	confluent*) COMMAND=("$CACHE/confluent/bin/python" confluent.py) ;;
	kafka-python) COMMAND=("$CACHE/kafka-python/bin/python" kafka_python.py) ;;
	aiokafka*) COMMAND=("$CACHE/aiokafka/bin/python" aio.py) ;;
	kcat) COMMAND=(python3 kcat.py) ;;
	kafkajs) COMMAND=(env NODE_PATH="$CACHE/kafkajs/node_modules" node kafkajs/client.js) ;;
	java) COMMAND=("${JVM[@]}" -cp "$CACHE/java/classes:$CACHE/java/jars/*" Client) ;;
	franz-go | sarama | kafka-go) COMMAND=("$CACHE/go/$1") ;;
	rdkafka) COMMAND=("$CACHE/rdkafka/debug/strandline-client-rdkafka") ;;
	esac
}
