// Writes every dashboard as a TypeScript module that says which type each part must have: the
// dashboard as a whole, and each panel's options and field configuration by the panel's type.
//
// A JSON file that is imported has `string` where the schema has a set of words. Written out as a
// literal it is held against them; and a key that the schema does not have is an error.

import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const here = new URL('./', import.meta.url);
const schema = createRequire(import.meta.url)('@grafana/schema');

// Panel types with a schema of their own, by the module that holds it. `fieldConfig` says whether
// the module has a type for the custom part of the field configuration.
const panelTypes = {
  bargauge: ['bargauge', 'BarGauge', false],
  logs: ['logs', 'Logs', false],
  stat: ['stat', 'Stat', false],
  'state-timeline': ['statetimeline', 'StateTimeline', true],
  table: ['table', 'Table', true],
  timeseries: ['timeseries', 'TimeSeries', true],
};

rmSync(new URL('generated', here), { recursive: true, force: true });
mkdirSync(new URL('generated', here));
const current = schema.defaultDashboard.schemaVersion;

for (const file of readdirSync(new URL('..', here)).filter((name) => name.endsWith('.json'))) {
  const dashboard = JSON.parse(readFileSync(new URL(`../${file}`, here), 'utf8'));
  if (dashboard.schemaVersion !== current) {
    throw new Error(`${file}: schemaVersion ${dashboard.schemaVersion}, the schema's is ${current}`);
  }
  const lines = [`import type * as grafana from '@grafana/schema';`];
  for (const [name, module] of new Map(Object.values(panelTypes).map(([dir, name]) => [name, dir]))) {
    lines.push(
      `import type * as ${name} from '@grafana/schema/dist/esm/raw/composable/${module}/panelcfg/x/${name}PanelCfg_types.gen';`,
    );
  }
  // Enums are written as their values in JSON. A type that takes both lets literals stand.
  lines.push(
    'type Plain<T> = T extends string ? `${T}` : T extends number ? T | (`${T}` extends `${infer N extends number}` ? N : never)',
    '  : T extends boolean | null | undefined ? T : unknown extends T ? T',
    '  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;',
    // What Grafana itself writes and reads beyond its schema: queries and custom field options.
    'type Loose<T, K extends PropertyKey> = Omit<T, K> & { [key in K]?: unknown };',
    'type Part<T> = Partial<Plain<T>>;',
  );
  const check = (type, value) => {
    lines.push(`({} as unknown); export const part${lines.length}: ${type} = ${JSON.stringify(value, null, 1)};`);
  };
  const { panels, templating, annotations, ...rest } = dashboard;
  check('Part<grafana.Dashboard>', rest);
  for (const variable of templating.list) {
    check('Part<grafana.VariableModel>', variable);
  }
  for (const annotation of annotations.list) {
    // A Prometheus annotation holds its query beside the keys of the schema.
    const { expr, step, titleFormat, tagKeys, useValueForTime, ...known } = annotation;
    check('Part<grafana.AnnotationQuery>', known);
  }
  for (const panel of panels) {
    if (panel.type === 'row') {
      check('Part<grafana.RowPanel>', panel);
      continue;
    }
    if (!(panel.type in panelTypes)) {
      throw new Error(`${file}: ${panel.title}: no schema is known for a panel of type ${panel.type}`);
    }
    const [, name, hasFieldConfig] = panelTypes[panel.type];
    const { options, fieldConfig, ...known } = panel;
    const { defaults: { custom = {}, ...defaults }, overrides } = fieldConfig;
    check('Part<grafana.Panel>', known);
    check(`Part<${name}.Options>`, options);
    check('Part<grafana.FieldConfig>', defaults);
    check(`Plain<grafana.FieldConfigSource['overrides']>`, overrides);
    if (hasFieldConfig) {
      check(`Part<${name}.FieldConfig>`, custom);
    } else if (Object.keys(custom).length > 0) {
      throw new Error(`${file}: ${panel.title}: ${panel.type} has no custom field options`);
    }
  }
  lines.push('');
  writeFileSync(new URL(`generated/${file.replace('.json', '.ts')}`, here), lines.join('\n').replaceAll('({} as unknown); ', ''));
}
