// Parses every LogQL query of the dashboards with Grafana's grammar.

import { readFileSync, readdirSync } from 'node:fs';
import { parser } from '@grafana/lezer-logql';

const here = new URL('../', import.meta.url);
const variables = { __auto: '1m', __range: '5m', contains: "what's full", tenant: '\\QAcme (EU) & "Sons"\\E' };
let count = 0;
let faults = 0;

for (const file of readdirSync(here).filter((name) => name.endsWith('.json'))) {
  const dashboard = JSON.parse(readFileSync(new URL(file, here), 'utf8'));
  for (const panel of dashboard.panels) {
    for (const target of (panel.targets ?? []).filter(({ datasource }) => datasource.type === 'loki')) {
      const query = target.expr.replaceAll(
        /\$(?:\{(\w+):raw\}|(\w+))/g,
        (_, raw, name) => variables[raw ?? name] ?? '.+',
      );
      count += 1;
      let at = -1;
      parser.parse(query).iterate({
        enter: (node) => {
          if (node.type.isError && at < 0) at = node.from;
        },
      });
      if (at >= 0) {
        faults += 1;
        console.error(`FAULT: ${file}: ${panel.title}: at ${at}: ${query}`);
      }
    }
  }
}
console.log(`logql: ${count} queries`);
process.exit(faults === 0 && count > 0 ? 0 : 1);
