// node oidc-provider as an operator would set it up for boards: client_credentials, private_key_jwt, resource indicators.
// Arguments: port, file with the client's JWKS, folder that holds node_modules. Prints one line when it listens.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [port, jwksFile, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/node_modules/`);
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));
const jwks = JSON.parse(readFileSync(jwksFile, "utf8"));

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "board-1",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: "private_key_jwt",
      token_endpoint_auth_signing_alg: jwks.keys[0].alg,
      jwks,
    },
  ],
  clientAuthMethods: ["private_key_jwt"],
  enabledJWA: { clientAuthSigningAlgValues: ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({ audience: resource, scope: "telemetry", accessTokenTTL: 600 }),
    },
  },
  scopes: ["telemetry"],
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
