// node oidc-provider with dynamic client registration (RFC 7591) behind an initial access token.
// Arguments: port, initial access token, folder that holds node_modules. Prints one line when it listens.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [port, initialAccessToken, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/node_modules/`);
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clientAuthMethods: ["private_key_jwt"],
  enabledJWA: { clientAuthSigningAlgValues: ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    registration: { enabled: true, initialAccessToken },
    resourceIndicators: { enabled: false },
  },
  scopes: ["telemetry"],
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
