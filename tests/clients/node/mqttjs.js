// mqtt.js as device and as subscriber on the endpoint. Run by ../mqttjs.py, which gives the port
// and a mode, and then checks by SQL what was published. Ends with one line of JSON.
'use strict';
const assert = require('node:assert');
const mqtt = require('mqtt');

const [port, mode, many] = [process.argv[2], process.argv[3], Number(process.argv[4])];
// From one message to the next, milliseconds; it makes up for what it is behind.
const interval = Number(process.argv[5] ?? 0);
const url = `mqtt://127.0.0.1:${port}`;
const FEW = 200;
const START_S = 1767225600;
const published = {};

const topicOf = (device) => `plant/north/${device}/telemetry`;
const payload = (seq) =>
  JSON.stringify({ seq, ts: START_S + seq, temperature: 20 + (seq % 10) / 2 });
const numberOf = (message) => JSON.parse(message.toString()).seq;
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

function note(device, seq) {
  (published[device] ??= []).push(seq);
}

async function connect(version, clientId, options = {}) {
  return mqtt.connectAsync(url, { protocolVersion: version, clientId, reconnectPeriod: 100, ...options });
}

// Collects messages; `reach(n)` waits until n have come.
function collect(client) {
  const got = { messages: [], packets: [], waiting: null };
  client.on('message', (topic, message, packet) => {
    got.messages.push(message.toString());
    got.packets.push(packet);
    if (got.waiting && got.messages.length >= got.waiting.n) got.waiting.done();
  });
  got.reach = (n) => new Promise((resolve, reject) => {
    if (got.messages.length >= n) return resolve();
    const timer = setTimeout(() => reject(new Error(`${got.messages.length} of ${n} came`)), 60000);
    got.waiting = { n, done: () => { clearTimeout(timer); resolve(); } };
  });
  return got;
}

async function publishAll(client, device, seqs, qos) {
  seqs.forEach((seq) => note(device, seq));
  await Promise.all(seqs.map((seq) => client.publishAsync(topicOf(device), payload(seq), { qos })));
}

async function everyQos(version) {
  for (const qos of [0, 1, 2]) {
    const device = `js${version}-q${qos}`;
    const reader = await connect(version, `r-${device}`);
    const got = collect(reader);
    const granted = await reader.subscribeAsync(topicOf(device), { qos });
    assert.strictEqual(granted[0].qos, qos);
    const writer = await connect(version, `w-${device}`);
    await publishAll(writer, device, range(0, FEW), qos);
    await got.reach(FEW);
    assert.deepStrictEqual(got.messages.map(numberOf), range(0, FEW));
    assert(got.packets.every((p) => p.qos === qos && !p.retain && !p.dup));
    await writer.endAsync();
    await reader.endAsync();
  }
}

async function retained(version) {
  const device = `js${version}-retained`;
  const topic = topicOf(device);
  const writer = await connect(version, `w-${device}`);
  for (const seq of [0, 1]) {
    note(device, seq);
    await writer.publishAsync(topic, payload(seq), { qos: 1, retain: true });
  }
  const reader = await connect(version, `r-${device}`);
  const got = collect(reader);
  await reader.subscribeAsync(topic, { qos: 1 });
  await got.reach(1);
  assert.strictEqual(numberOf(got.messages[0]), 1);
  assert.strictEqual(got.packets[0].retain, true);
  await writer.publishAsync(topic, '', { qos: 1, retain: true });
  await got.reach(2);
  assert.strictEqual(got.packets[1].retain, false);
  await writer.endAsync();
  await reader.endAsync();
}

async function will(version) {
  const device = `js${version}-will`;
  const watcher = await connect(version, `r-${device}`);
  const got = collect(watcher);
  await watcher.subscribeAsync(topicOf(device), { qos: 1 });
  const last = (seq) => ({ will: { topic: topicOf(device), payload: payload(seq), qos: 1 } });
  const polite = await connect(version, `p-${device}`, last(1));
  await polite.endAsync();
  const victim = await connect(version, `v-${device}`, { reconnectPeriod: 0, ...last(2) });
  victim.stream.destroy();
  await got.reach(1);
  assert.deepStrictEqual(got.messages.map(numberOf), [2]);
  note(device, 2);
  await watcher.endAsync();
}

async function session(version) {
  const device = `js${version}-session`;
  const options = { clean: false };
  if (version === 5) options.properties = { sessionExpiryInterval: 3600 };
  const first = await connect(version, `r-${device}`, options);
  await first.subscribeAsync(topicOf(device), { qos: 2 });
  await first.endAsync();
  const writer = await connect(version, `w-${device}`);
  // QoS 0 does not wait for who is away.
  await publishAll(writer, device, range(FEW, FEW + 20), 0);
  await publishAll(writer, device, range(0, FEW), 2);
  // Messages wait from before the CONNACK on, so this one listens first.
  const again = mqtt.connect(url, { protocolVersion: version, clientId: `r-${device}`, ...options });
  const got = collect(again);
  const connack = await new Promise((resolve) => again.once('connect', resolve));
  assert.strictEqual(connack.sessionPresent, true);
  await got.reach(FEW);
  assert.deepStrictEqual(got.messages.map(numberOf), range(0, FEW));
  await again.endAsync();
  await writer.endAsync();
}

async function shared(version) {
  const device = `js${version}-shared`;
  const members = [];
  for (const i of [0, 1, 2]) {
    const client = await connect(version, `m${i}-${device}`);
    members.push({ client, got: collect(client) });
    await client.subscribeAsync(`$share/js/${topicOf(device)}`, { qos: 1 });
  }
  const writer = await connect(version, `w-${device}`);
  await publishAll(writer, device, range(0, FEW), 1);
  const all = () => members.flatMap((m) => m.got.messages.map(numberOf));
  for (let i = 0; all().length < FEW && i < 600; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.deepStrictEqual(all().sort((a, b) => a - b), range(0, FEW));
  for (const { client } of members) await client.endAsync();
  await writer.endAsync();
}

async function requestResponse() {
  const device = 'js5-rr';
  const answerer = await connect(5, `a-${device}`);
  await answerer.subscribeAsync(topicOf(device), { qos: 1 });
  answerer.on('message', (_topic, message, { properties }) => {
    answerer.publish(properties.responseTopic, `got ${numberOf(message)}`, {
      qos: 1,
      properties: {
        correlationData: properties.correlationData,
        userProperties: properties.userProperties,
      },
    });
  });
  const asker = await connect(5, `q-${device}`);
  const got = collect(asker);
  await asker.subscribeAsync('answers/js', { qos: 1 });
  note(device, 4);
  await asker.publishAsync(topicOf(device), payload(4), {
    qos: 1,
    properties: {
      responseTopic: 'answers/js',
      correlationData: Buffer.from([0, 1, 255]),
      userProperties: { unit: ['°C', 'K'], site: 'north' },
      contentType: 'application/json',
      messageExpiryInterval: 60,
    },
  });
  await got.reach(1);
  assert.strictEqual(got.messages[0], 'got 4');
  const { properties } = got.packets[0];
  assert.deepStrictEqual([...properties.correlationData], [0, 1, 255]);
  assert.deepStrictEqual({ ...properties.userProperties }, { unit: ['°C', 'K'], site: 'north' });
  await answerer.endAsync();
  await asker.endAsync();
}

async function version5() {
  const device = 'js5-options';
  const reader = await connect(5, `r-${device}`);
  const got = collect(reader);
  await reader.subscribeAsync(topicOf(device), {
    qos: 1, nl: true, rap: true, rh: 1, properties: { subscriptionIdentifier: 77 },
  });
  note(device, 0);
  await reader.publishAsync(topicOf(device), payload(0), { qos: 1 });
  const writer = await connect(5, `w-${device}`, { autoAssignTopicAlias: true });
  await publishAll(writer, device, range(1, FEW), 1);
  await got.reach(FEW - 1);
  assert.deepStrictEqual(got.messages.map(numberOf), range(1, FEW));
  assert(got.packets.every((p) => p.properties.subscriptionIdentifier === 77));
  await writer.endAsync();
  await reader.endAsync();
}

// mqtt.js sends again without the DUP flag, against 3.3.1-1 of the standard, so that nobody can tell
// a repetition from a new message of equal content. This store sets it.
class DupStore extends mqtt.Store {
  createStream() {
    for (const packet of this._inflights.values()) {
      if (packet.cmd === 'publish') packet.dup = true;
    }
    return super.createStream();
  }
}

// Publishes on and on through whatever happens to the other side; mqtt.js sends again by itself.
async function through(version, qos, marked, number) {
  const device = `js${version}-${marked ? 'through' : 'unmarked'}${qos}-${number}`;
  const options = { clean: false };
  if (marked) options.outgoingStore = new DupStore({ clean: false });
  if (version === 5) options.properties = { sessionExpiryInterval: 3600 };
  const client = mqtt.connect(url, {
    protocolVersion: version, clientId: `w-${device}`, reconnectPeriod: 100, keepalive: 10, ...options,
  });
  client.on('error', () => {});
  await new Promise((resolve) => client.once('connect', resolve));
  let [done, next] = [0, 0];
  const begin = Date.now();
  await new Promise((resolve) => {
    const send = (seq) => {
      client.publish(topicOf(device), payload(seq), { qos }, (error) => {
        // What was asked for while it sends again what it kept, mqtt.js gives back unsent.
        if (error?.message === 'Connection closed') return setTimeout(send, 20, seq);
        assert(!error, error);
        note(device, seq);
        if (++done % 100 === 0) console.error(`acknowledged ${done}`);
        if (next < many) plan(next++);
        if (done === many) resolve();
      });
    };
    const plan = (seq) => setTimeout(send, begin + seq * interval - Date.now(), seq);
    for (let i = 0; i < 50; i++) plan(next++);
  });
  await client.endAsync();
}

async function main() {
  if (mode === 'all') {
    for (const version of [4, 5]) {
      for (const part of [everyQos, retained, will, session, shared]) await part(version);
    }
    await requestResponse();
    await version5();
  } else {
    const [version, qos, marked, number] = mode.split(',').map(Number);
    await through(version, qos, marked === 1, number);
  }
  console.log(JSON.stringify(published));
}

main().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
