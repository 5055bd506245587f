#!/bin/sh
# Kafka's command-line tools under the names that people know, from jars: link it as kafka-topics.sh, kafka-configs.sh and
# kafka-consumer-groups.sh. STRANDLINE_KAFKA_JARS is the folder with the jars.
case $(basename "$0") in
kafka-topics.sh) class=org.apache.kafka.tools.TopicCommand ;;
kafka-configs.sh) class=kafka.admin.ConfigCommand ;;
kafka-consumer-groups.sh) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
*) echo "$0 is no tool of Kafka's that is known here" >&2 && exit 2 ;;
esac
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
	-cp "$STRANDLINE_KAFKA_JARS/*" "$class" "$@"
