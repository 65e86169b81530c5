"""paho as a device on the endpoint: MQTT 3.1.1 and 5, QoS 0 and 1, many at once, keep-alive."""

import paho.mqtt.client as mqtt

from harness import ENDPOINT, PIPELINE, Tidegate, eventually, payload, totals

MANY = 400


class Device:
    def __init__(self, port, name, version, keepalive=60):
        self.topic = f"plant/north/{name}/telemetry"
        self.acknowledged, self.pongs, self.lost = set(), 0, []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name,
                                  protocol=version)
        self.client.on_publish = lambda _c, _u, mid, _r, _p: self.acknowledged.add(mid)
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: self.lost.append(reason)
        self.client.on_log = self._log
        self.client.connect("127.0.0.1", port, keepalive=keepalive)
        self.client.loop_start()
        eventually("CONNACK", self.client.is_connected)

    def _log(self, _client, _userdata, _level, text):
        self.pongs += "PINGRESP" in text

    def close(self):
        assert not self.lost, f"the connection was lost: {self.lost}"
        self.client.disconnect()
        self.client.loop_stop()


def main():
    with Tidegate(PIPELINE.replace("SOURCE", ENDPOINT)) as tidegate:
        port = tidegate.port()
        idle = [Device(port, f"idle-{v}", v, keepalive=1) for v in [mqtt.MQTTv311, mqtt.MQTTv5]]
        devices, expected = [], {}
        for version in [mqtt.MQTTv311, mqtt.MQTTv5]:
            for qos in [0, 1]:
                name = f"v{version}-qos{qos}"
                devices.append((Device(port, name, version), qos))
                expected[name] = totals(range(MANY))
        for seq in range(MANY):
            for device, qos in devices:
                info = device.client.publish(device.topic, payload(seq), qos=qos)
                assert info.rc == mqtt.MQTT_ERR_SUCCESS, info
        for device, _ in devices:
            eventually("all PUBACKs", lambda: len(device.acknowledged) == MANY)
            device.close()
        tidegate.wait_for(expected)
        for device in idle:
            eventually("two answers to pings", lambda: device.pongs >= 2)
            info = device.client.publish(device.topic, payload(1), qos=1)
            info.wait_for_publish(60)
            assert info.is_published()
            expected[device.topic.split("/")[2]] = totals([1])
            device.close()
        tidegate.wait_for(expected)
        tidegate.stop()
        assert tidegate.per_device() == expected
    print(f"paho: {len(expected)} devices, {MANY} readings each, none lost or doubled")


main()
