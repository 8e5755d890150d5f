// oidc-provider 9 as an authorization server for a fleet: client_credentials with private_key_jwt, JWT access tokens
// (ES256), clients, replay detection and last seen in SQLite. node oidc.mjs PORT DATABASE
import { generateKeyPairSync } from 'node:crypto';
import { DatabaseSync } from 'node:sqlite';
import { createRequire } from 'node:module';

const require = createRequire(process.cwd() + '/');
const { default: Provider } = await import(require.resolve('oidc-provider'));

const [port, file] = process.argv.slice(2);
const database = new DatabaseSync(file);
database.exec('PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL');
database.exec('CREATE TABLE IF NOT EXISTS used (id TEXT PRIMARY KEY, payload TEXT, expires INTEGER) WITHOUT ROWID');
const findClient = database.prepare('SELECT payload FROM client WHERE id = ?');
const findUsed = database.prepare('SELECT payload FROM used WHERE id = ?');
const saveUsed = database.prepare('INSERT INTO used VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET payload = excluded.payload');
const seen = database.prepare('UPDATE client SET last_seen = ? WHERE id = ?');

class Adapter {
  constructor(model) { this.model = model; }
  async upsert(id, payload, expiresIn) { saveUsed.run(`${this.model}:${id}`, JSON.stringify(payload), Math.floor(Date.now() / 1000) + (expiresIn ?? 0)); }
  async find(id) {
    const row = this.model === 'Client' ? findClient.get(id) : findUsed.get(`${this.model}:${id}`);
    return row ? JSON.parse(row.payload) : undefined;
  }
  async findByUid() {}
  async findByUserCode() {}
  async consume() {}
  async destroy() {}
  async revokeByGrantId() {}
}

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const issuer = `http://127.0.0.1:${port}`;
const resource = { scope: 'device', audience: issuer, accessTokenFormat: 'jwt', accessTokenTTL: 1800, jwt: { sign: { alg: 'ES256' } } };
const provider = new Provider(issuer, {
  adapter: Adapter,
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: 'k1' }] },
  clientAuthMethods: ['private_key_jwt'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256'] },
  scopes: ['device'],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: { enabled: true, defaultResource: () => issuer, getResourceServerInfo: () => resource, useGrantedResource: () => true },
  },
  extraTokenClaims(ctx, token) { seen.run(Math.floor(Date.now() / 1000), token.clientId); },
});
provider.listen(Number(port), '127.0.0.1', () => console.error('listening'));
